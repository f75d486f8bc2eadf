"""`bench --offload`: ways to answer between edge and cloud, compared under emulated links and devices."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msao_compile.cli.options import DeploymentFolder, Json, Quiet
from msao_compile.cli.talk import Talk, talk_of
from msao_compile.errors import InputError

if TYPE_CHECKING:
    from msao_compile.bench.sweep import Asking

Rate = Annotated[float, typer.Option(metavar="R", min=0.01, help="Check: Mbit/s of each edge's link.")]
RoundTrip = Annotated[float, typer.Option(metavar="MS", min=0.0, help="Check: its round trip.")]
Jitter = Annotated[float, typer.Option(metavar="MS", min=0.0, help="Check: its jitter.")]
Loss = Annotated[float, typer.Option(metavar="P", min=0.0, max=0.99, help="Check: share of packets lost.")]
Edges = Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Check: edge processes at once.")]
Real = Annotated[
    bool, typer.Option("--check", help="One point in real time by real processes, beside what is emulated.")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Check: ask so often, and count the quiet rounds.")]
Declared = Annotated[
    bool, typer.Option("--declared", help="Check: the setting's speeds, by waiting, not this machine's own.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check: tell what would run, and for how long.")]


def bench(
    context: typer.Context,
    deployment: DeploymentFolder,
    samples: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled questions as JSON lines.", show_default=False)
    ],
    setting: Annotated[
        Path, typer.Option(metavar="FILE", help="Declared speeds, picture size and points (TOML).", show_default=False)
    ],
    offload: Annotated[bool, typer.Option("--offload", help="Compare ways to answer between edge and cloud.")] = False,
    questions: Annotated[int, typer.Option(metavar="N", min=1, help="Ask so many at each point.")] = 240,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="P", help="Only this policy; may be repeated.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Results, report and plot.")] = Path(
        "artifacts/offloading"
    ),
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Points at the same time.")] = 1,
    check: Real = False,
    mbps: Rate = 300.0,
    rtt_ms: RoundTrip = 20.0,
    jitter_ms: Jitter = 0.0,
    loss: Loss = 0.0,
    edges: Edges = 1,
    rounds: Rounds = 1,
    declared: Declared = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare ways to answer between edge and cloud. Answers are real, time is emulated: by declared speeds and links.

    Results are kept as they come: the same command goes on where it was stopped.

    --check shows whether that is true: it starts a cloud, links and edges as processes, asks the same questions in real
    time and tells what was foretold and what was seen. Each call adds its point to the report in DIR:

      msao-compile bench DEPLOYMENT --offload --check --samples questions.jsonl --setting recipes/settings/msao.toml
      --questions 48 --mbps 20 --rtt-ms 80 --policy cloud-only --policy auto
    """
    talk = talk_of(context, as_json, quiet)
    if not offload:
        raise InputError("bench has one comparison so far: add --offload")
    if check:
        from msao_compile.bench.check import Check
        from msao_compile.bench.shape import Shape
        from msao_compile.cli.bench_check import checked

        shape = Shape(mbps=mbps, rtt_ms=rtt_ms, jitter_ms=jitter_ms, loss=loss)
        asked = Check(deployment, setting, samples, questions, tuple(policy or ()), shape, edges, declared, rounds)
        checked(talk, asked, out, dry_run)
        return
    if declared or dry_run:
        raise InputError("--declared and --dry-run belong to a check: add --check")
    from msao_compile.bench.sweep import Asking

    _swept(talk, Asking(deployment, setting, samples, questions, tuple(policy or ())), out, jobs)


def _swept(talk: Talk, asking: Asking, out: Path, jobs: int) -> None:
    """Every point in counted time; report, numbers and plot go to `out`."""
    from msao_compile.bench.report import markdown, plot
    from msao_compile.bench.setting import read_setting
    from msao_compile.bench.sweep import sweep

    out.mkdir(parents=True, exist_ok=True)

    def tell(done: int, of: int) -> None:
        talk.say(f"{done} of {of} points")

    rows = sweep(asking, out / "points.jsonl", jobs, tell)
    asked = str(asking.questions)
    facts = {"python": platform.python_version(), "onnxruntime": version("onnxruntime"), "questions": asked}
    command = (
        f"msao-compile bench {asking.deployment} --offload --samples {asking.samples} --setting {asking.setting} "
        f"--questions {asked}"
    )
    report = markdown(read_setting(asking.setting), rows, command, facts)
    (out / "offloading.md").write_text(report, encoding="utf-8")
    (out / "offloading.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, out / "offloading.svg")
    talk.reply({"rows": rows, "report": str(out / "offloading.md")}, lambda: None)
    talk.say(str(out / "offloading.md"))
