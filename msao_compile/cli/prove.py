"""`parity`: does what ships still equal its torch original, and where does it stop doing so?"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import DEPLOYMENTS, STORE, Jobs, Json, Out, Quiet, StoreFolder, unset
from msao_compile.cli.talk import Talk, talk_of
from msao_compile.errors import GateError, InputError

if TYPE_CHECKING:
    from msao_compile.manifest.evidence import ParityRow

HEADERS = (
    "verdict",
    "model",
    "subject",
    "dialect",
    "backend",
    "precision",
    "max abs",
    "min cosine",
    "argmax",
    "compared",
    "bound",
)
NUMBERS = frozenset({6, 7, 8, 9})
SETTINGS = (1, 3, 4, 5, 10)
"""Columns that often say the same in every row."""


Subject = Annotated[
    Path,
    typer.Argument(
        metavar="DEPLOYMENT",
        help="A folder that holds a deployment.json; with --bisect also a recipe whose parity fails.",
        show_default=False,
    ),
]
Reference = Annotated[
    Path | None,
    unset("FILE.npz", "Recorded in.<name>, logits and, if wanted, generate; without it the build's own proof is read."),
]
OneModel = Annotated[str | None, unset("M", "Only this model.")]
Bisect = Annotated[
    bool, typer.Option("--bisect", help="Compare modules of less than fp32 with their fp32 graphs block by block.")
]
OneTarget = Annotated[str | None, unset("T", "Bisect this target only.", "--target", "-t")]
OneComponent = Annotated[str | None, unset("C", "Bisect this component only.")]
Apply = Annotated[Path | None, unset("RECIPE", "Write the fp32 islands that help into this recipe and build it.")]


def parity(
    context: typer.Context,
    deployment: Subject,
    reference: Reference = None,
    model: OneModel = None,
    bisect: Bisect = False,
    target: OneTarget = None,
    component: OneComponent = None,
    apply: Apply = None,
    jobs: Jobs = 1,
    out: Out = DEPLOYMENTS,
    store: StoreFolder = STORE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the deployment with its torch original, or with recorded outputs, and fail where a bound is broken.

    With --bisect: name the blocks that lose it, and the blocks to keep in fp32."""
    talk = talk_of(context, as_json, quiet)
    if bisect:
        from msao_compile.cli.bisect import Wanted, bisected
        from msao_compile.pipeline import Options

        if reference is not None:
            raise InputError("--reference: a bisection compares with the fp32 graphs; leave one of the two out")
        bisected(talk, Wanted(deployment, target, model, component, apply), Options(out, store, jobs))
        return
    if stray := [name for name, given in (("target", target), ("component", component), ("apply", apply)) if given]:
        raise InputError(f"--{stray[0]} belongs to a bisection: add --bisect or leave it out")
    _prove(talk, deployment, reference, model)


def _prove(talk: Talk, deployment: Path, reference: Path | None, model: str | None) -> None:
    from msao_compile.stages.parity import check_deployment

    if reference is not None and not reference.is_file():
        raise InputError(f"{reference}: there is no such file; give a .npz file with recorded inputs and outputs")
    evidence = check_deployment(deployment, reference, model, gate=False)
    rows = evidence.rows
    facts = {
        "deployment": str(deployment), "verdict": overall(rows), "rows": [row.model_dump() for row in rows],
        "left_out": evidence.left_out,
    }  # fmt: skip
    talk.reply(facts, lambda: _show(rows))
    refuse(rows, evidence.left_out, f"msao-compile parity {shlex.quote(str(deployment))} --bisect")
    for name, reason in evidence.left_out.items():
        talk.say(f"not compared: {name}: {reason}")
    talk.say(summary(rows))


def overall(rows: tuple[ParityRow, ...]) -> str:
    """FAIL where one failed or nothing was compared, else AMBIGUOUS where one is, else PASS."""
    verdicts = {row.verdict for row in rows}
    if not rows or "FAIL" in verdicts:
        return "FAIL"
    return "AMBIGUOUS" if "AMBIGUOUS" in verdicts else "PASS"


def refuse(rows: tuple[ParityRow, ...], left_out: Mapping[str, str] = MappingProxyType({}), command: str = "") -> None:
    """The gate; `left_out` says why models were not compared, `command` how to look into a failure.

    Raises:
        GateError: a comparison failed, or none was made.
    """
    if not rows:
        reasons = [f"{name}: {reason}" for name, reason in left_out.items()]
        said = "; ".join(reasons) or "check --model and the reference file"
        raise GateError(f"parity compared nothing, and nothing compared is no pass; {said}")
    failed = [row for row in rows if row.verdict == "FAIL"]
    if failed:
        from msao_compile.runtime.compare import bisection

        worst = failed[0]
        raise GateError(
            f"parity failed in {len(failed)} of {units.plural(len(rows), 'comparison')}, "
            f"first {worst.model} {worst.subject} ({worst.dialect}, {worst.backend}, {worst.precision}): "
            f"max abs {units.deviation(worst.max_abs)}, min cosine {worst.min_cosine:.6f}, bound {worst.bound}; "
            f"raise the precision there or correct the bound{bisection(failed, command)}"
        )


def summary(rows: tuple[ParityRow, ...]) -> str:
    """One line over all verdicts."""
    counts = Counter(row.verdict for row in rows)
    parts = [f"{counts[verdict]} {verdict}" for verdict in ("PASS", "AMBIGUOUS", "FAIL") if counts[verdict]]
    return f"parity: {', '.join(parts)}"


def _show(rows: tuple[ParityRow, ...]) -> None:
    """The table; what is the same in every row stands once below it, so that a narrow terminal has room."""
    cells = [_cells(row) for row in rows]
    same = [index for index in SETTINGS if len({row[index] for row in cells}) == 1]
    shown = [index for index in range(len(HEADERS)) if index not in same]
    draw.table(
        [HEADERS[index] for index in shown],
        [[row[index] for index in shown] for row in cells],
        {shown.index(index) for index in NUMBERS},
    )
    if same:
        draw.line(f"in every row: {'; '.join(f'{HEADERS[index]} {cells[0][index]}' for index in same)}")


def _cells(row: ParityRow) -> tuple[str, ...]:
    return (
        row.verdict,
        row.model,
        row.subject,
        row.dialect,
        row.backend,
        row.precision,
        units.deviation(row.max_abs),
        f"{row.min_cosine:.6f}",
        f"{row.argmax_agreement:.2%}",
        str(row.compared),
        row.bound,
    )
