"""`bench --offload --check`: one point asked of real processes on the clock, beside the same point in counted time."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msao_compile.cli import draw, units
from msao_compile.cli.talk import Talk
from msao_compile.errors import DamagedFile, Interrupted

if TYPE_CHECKING:
    from msao_compile.bench.check import Check

NAME = "offloading-check"


def checked(talk: Talk, check: Check, out: Path, dry_run: bool) -> None:
    """Run a check, or tell what would be run; results join those of other points in `out`.

    Raises:
        InputError, DeploymentError, StageError, MissingTool: as `bench.check.run`. DamagedFile: the results in `out`
            are none. Interrupted: Ctrl-C or SIGTERM; every process was ended.
    """
    from msao_compile.bench.check import expected_s, run, same_place
    from msao_compile.bench.check_report import markdown
    from msao_compile.bench.policies import policies

    earlier = _read(out / f"{NAME}.json")
    expected = expected_s(check)
    if dry_run:
        facts = {
            "deployment": str(check.deployment), "mbps": check.shape.mbps, "rtt_ms": check.shape.rtt_ms,
            "jitter_ms": check.shape.jitter_ms, "loss": check.shape.loss, "edges": check.edges, "rounds": check.rounds,
            "questions": check.questions, "policies": list(check.only or policies(None)),
            "speeds": "declared" if check.declared else "measured", "expected_s": expected, "written": False,
        }  # fmt: skip
        talk.reply(facts, lambda: _draw_plan(facts))
        return
    talk.say(f"about {units.seconds(expected)}")
    out.mkdir(parents=True, exist_ok=True)
    began_s = time.perf_counter()
    try:
        found = {"command": command(check), **run(check, out / "cloud.log", talk.say)}
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted: cloud, links and edges were ended, nothing was written") from error
    kept = [one for one in earlier if not same_place(one, found)] + [found]
    (out / f"{NAME}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (out / f"{NAME}.md").write_text(markdown(kept), encoding="utf-8")
    talk.reply({**found, "report": str(out / f"{NAME}.md")}, lambda: _draw(found))
    talk.say(f"took {units.seconds(time.perf_counter() - began_s)}; {out / NAME}.md has it")


def command(check: Check) -> str:
    """The command line that repeats a check."""
    shape = check.shape
    words: list[object] = ["msao-compile", "bench", check.deployment, "--offload", "--check", "--samples",
                           check.samples, "--setting", check.setting, "--questions", check.questions,
                           "--mbps", f"{shape.mbps:g}", "--rtt-ms", f"{shape.rtt_ms:g}"]  # fmt: skip
    words += ["--jitter-ms", f"{shape.jitter_ms:g}"] if shape.jitter_ms else []
    words += ["--loss", f"{shape.loss:g}"] if shape.loss else []
    words += ["--edges", check.edges] if check.edges > 1 else []
    words += ["--rounds", check.rounds] if check.rounds > 1 else []
    words += ["--declared"] if check.declared else []
    for name in check.only:
        words += ["--policy", name]
    return shlex.join(map(str, words))


def _read(file: Path) -> list[dict[str, Any]]:
    """Results of other points, which stay."""
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        for one in found:
            one["mbps"], one["speeds"], one["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{file}: holds other than results of checks ({error}): remove it") from error
    return list(found)


def _draw_plan(facts: Mapping[str, Any]) -> None:
    draw.line(
        f"would ask {facts['questions']} questions under {', '.join(facts['policies'])}: a cloud process that serves "
        f"{facts['deployment']}, {facts['edges']} links of {facts['mbps']:g} Mbit/s and {facts['rtt_ms']:g} ms, "
        f"{facts['edges']} edge processes, {facts['speeds']} speeds"
    )
    draw.line(f"would take about {units.seconds(facts['expected_s'])}")


def _draw(found: Mapping[str, Any]) -> None:
    headers = ("policy", "predicted ms", "seen ms", "error", "p95", "TTFT", "bytes up", "same tokens")
    rows = []
    for row in found["rows"]:
        means = [f"{row[side]['mean_ms']:.1f}" for side in ("predicted", "seen")]
        errors = [_signed(row["error"][key]) for key in ("mean_ms", "p95_ms", "ttft_ms", "up_bytes")]
        rows.append((row["policy"], *means, *errors, f"{row['equal']}/{row['n']}"))
    draw.table(headers, rows, frozenset(range(1, len(headers))))
    late = found["timer_late_ms"]
    draw.line(f"timers were late by {late['p50']:.2f} ms (median) and {late['p95']:.2f} ms (95th percentile)")


def _signed(error: float | None) -> str:
    return "–" if error is None else f"{100 * error:+.1f} %"
