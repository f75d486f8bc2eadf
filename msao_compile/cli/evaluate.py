"""`eval`: how many questions are answered right, for each target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msao_compile.cli import draw
from msao_compile.cli.options import DeploymentFolder, Json, Quiet, unset
from msao_compile.cli.talk import Talk, talk_of
from msao_compile.errors import GateError

if TYPE_CHECKING:
    from msao_compile.manifest.accuracy import Accuracy, AccuracyReport

HEADERS = ("targets", "model", "dialect", "precision", "right", "of", "accuracy", "95 %", "answered by")


def eval(
    context: typer.Context,
    deployment: DeploymentFolder,
    samples: Annotated[Path, unset("FILE.jsonl", "Lines with question, answer and image, a file beside it.")],
    target: Annotated[str | None, unset("T", "Only this target.", "--target", "-t")] = None,
    model: Annotated[str | None, unset("M", "Only this model.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first so many samples.", show_default=False)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer labelled questions with a deployment and count the answers that match exactly, for each target.

    Engines that do not run on this machine are stood in for by ONNX Runtime with their graphs."""
    talk = talk_of(context, as_json, quiet)
    found = evaluated(talk, deployment, samples, (target, model, limit))
    facts = {"deployment": str(deployment), **found.model_dump(mode="json")}
    talk.reply(facts, lambda: draw.table(HEADERS, [_cells(row) for row in found.rows], frozenset({4, 5, 6})))
    for name, reason in found.left_out.items():
        talk.say(f"not asked: {name}: {reason}")
    if not found.rows:
        raise GateError("no question was asked, and nothing asked is no result; see the reasons above")


def evaluated(
    talk: Talk, folder: Path, samples: Path, only: tuple[str | None, str | None, int | None] = (None, None, None)
) -> AccuracyReport:
    """What the stage counted in a process of its own; `only`: a target, a model, a number of samples."""
    from msao_compile.farm.job import Job, Progress
    from msao_compile.farm.local import run
    from msao_compile.manifest.accuracy import AccuracyReport

    def tell(told: Progress) -> None:
        talk.say(f"{told['model']} for {told['target']}: {told['done']} of {told['of']}")

    target, model, limit = only
    arguments = {
        "folder": str(folder), "samples": str(samples), "target": target, "model": model, "limit": limit,
    }  # fmt: skip
    job = Job(function="msao_compile.stages.evaluate:run", arguments=arguments, phase=f"evaluation of {folder}")
    return AccuracyReport.model_validate(run(job, tell).value)


def _cells(row: Accuracy) -> tuple[str, ...]:
    return (
        ", ".join(row.targets), row.model, row.dialect, row.precision, str(row.right), str(row.asked),
        f"{row.share:.1%}", f"{row.low:.1%} - {row.high:.1%}", row.through,
    )  # fmt: skip
