"""`python -m tests.bench.accuracy`: what the shapes pair loses of its right answers in each precision.

Both models answer the same held-out questions in fp32 and in each variant, through the runtime that ships. Graphs of
GPU targets are run by ONNX Runtime on the CPU; no GPU was near.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from calibration.shapes.dataset import samples, write
from msao_compile.farm.job import Job
from msao_compile.farm.local import run
from msao_compile.manifest.accuracy import Accuracy, AccuracyReport
from msao_compile.pipeline import Options, draft
from tests.bench.children import REPOSITORY
from tests.bench.machine import commit, machine
from tests.bench.report import table

ALLOWED_POINTS = 1.0
Z_95 = 1.959964
SEEN, SHOWN = "<= 1 point", "shown"
HEAD = f"""\
recipe = 1
name = "accuracy"
[models.edge]
checkpoint = "{REPOSITORY}/calibration/models/shapes-edge"
role = "draft"
[models.cloud]
checkpoint = "{REPOSITORY}/calibration/models/shapes-cloud"
role = "target"
[tasks.vqa]
models = ["edge", "cloud"]
[shapes.decoder]
batch = [1, 1, 8]
sequence = [1, 64, 256]
kv_capacity = 256
[ranges]
samples = "{REPOSITORY}/calibration/ranges/questions.jsonl"
limit = 45
"""
L4, CPU = 'device = "nvidia-l4"\ndialect = "scatter"', 'device = "local-cpu"\nprefer = "size"'


@dataclass(frozen=True)
class Variant:
    """One way to run both models: a target of the recipe, and what is asked of it."""

    target: str
    words: str
    device: str
    precision: str
    asked: str = SEEN


BASE = Variant("fp32", "fp32, fused", CPU, '"fp32"')
VARIANTS = (
    Variant("fp16", "fp16, scatter", L4, '"fp16"'),
    Variant("int8", "int8 vision and decoder, scatter", L4,
            '{ vision_encoder = "int8", embed_tokens = "fp16", decoder = "int8" }'),
    Variant("int8-cpu", "int8 vision and decoder, fused", CPU, '{ vision_encoder = "int8", decoder = "int8" }'),
    Variant("int4", "int4 decoder, rest fp16, scatter", L4,
            '{ vision_encoder = "fp16", embed_tokens = "fp16", decoder = "int4" }', SHOWN),
    Variant("int4-cpu", "int4 decoder, fused", CPU, '{ decoder = "int4" }', SHOWN),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One model in one variant; points are hundredths of the questions, `lost` against fp32 with a paired interval."""

    model: str
    variant: str
    asked: int
    points: float
    low: float
    high: float
    lost: float
    lost_low: float
    lost_high: float
    bar: str


def main() -> int:
    """Build, ask, print, write; 0 where fp16 and int8 lose no more than is allowed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.accuracy", description=__doc__)
    parser.add_argument("--count", type=int, default=2400, help="held-out questions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench/accuracy"), help="the store in it is kept")
    chosen = parser.parse_args()
    where, made_at = machine(), commit()
    report = measured(chosen.folder, chosen.count)
    found = lines(report)
    command = shlex.join(["python", "-m", "tests.bench.accuracy", *sys.argv[1:]])
    text = markdown(command, made_at, where, found)
    sys.stdout.write(text)
    told: dict[str, Any] = {"command": command, "commit": made_at, "machine": where}
    told |= {"lines": [asdict(one) for one in found], "rows": report.model_dump(mode="json")["rows"]}
    for file, content in ((chosen.json, json.dumps(told, indent=1) + "\n"), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return 1 if any(one.bar == "no" for one in found) else 0


def measured(folder: Path, count: int) -> AccuracyReport:
    """Ask every variant; questions are those of the first seeds that no training, fit or range has seen."""
    folder = folder.absolute()
    shutil.rmtree(folder / "questions", ignore_errors=True)
    write(samples("heldout", count), folder / "questions")
    recipe = folder / "accuracy.toml"
    targets = [f"[targets.{one.target}]\n{one.device}\nprecision = {one.precision}\n" for one in (BASE, *VARIANTS)]
    recipe.write_text(HEAD + "".join(targets))
    options = Options(folder / "out", folder / "store", jobs=2)
    with draft(recipe, options, lambda event: _say(event.stage, event.subject, event.state), compare=False) as made:
        arguments = {"folder": str(made[0]), "samples": str(folder / "questions/questions.jsonl"), "target": None,
                     "model": None, "limit": None}  # fmt: skip
        told = run(Job(function="msao_compile.stages.evaluate:run", arguments=arguments), lambda at: _say(*at.values()))
    return AccuracyReport.model_validate(told.value)


def _say(*words: object) -> None:
    sys.stderr.write(f"accuracy: {' '.join(map(str, words))}\n")


def lines(report: AccuracyReport) -> list[Line]:
    """Every model and variant beside fp32."""
    found = []
    for model in dict.fromkeys(row.model for row in report.rows):
        base = _row(report, model, BASE.target)
        for one in (BASE, *VARIANTS):
            row = _row(report, model, one.target)
            lost, low, high = paired(base.marks, row.marks)
            bar = "" if one is BASE else SHOWN if one.asked == SHOWN else "yes" if lost <= ALLOWED_POINTS else "no"
            found.append(
                Line(model, one.words, row.asked, 100 * row.share, 100 * row.low, 100 * row.high, lost, low, high, bar)
            )  # fmt: skip
    return found


def _row(report: AccuracyReport, model: str, target: str) -> Accuracy:
    return next(row for row in report.rows if row.model == model and target in row.targets)


def paired(base: str, other: str) -> tuple[float, float, float]:
    """Points that the same questions lose from one to the other, and their 95 % interval.

    That of a difference of paired shares with half a question more of each kind (Agresti and Min, 2005), so that a few
    questions of which none changes prove little: with b lost and c won of n it is
    (b - c) / (n + 2) ± z sqrt(b + c + 1 - (b - c)² / (n + 2)) / (n + 2).
    """
    lost = sum(before == "1" and after == "0" for before, after in zip(base, other, strict=True))
    won = sum(before == "0" and after == "1" for before, after in zip(base, other, strict=True))
    count = len(base) + 2
    middle = (lost - won) / count
    half = Z_95 * sqrt(lost + won + 1 - (lost - won) ** 2 / count) / count
    return 100 * (lost - won) / len(base), 100 * (middle - half), 100 * (middle + half)


def markdown(command: str, made_at: str, where: dict[str, str], found: Sequence[Line]) -> str:
    """The table with what a reader needs to judge it."""
    header = ("model", "variant", "n", "exact match, % (95 %)", "points lost (95 %, paired)", f"{SEEN}")
    rows = [
        (one.model, one.variant, str(one.asked), f"{one.points:.1f} ({one.low:.1f} - {one.high:.1f})",
         "" if not one.bar else f"{one.lost:.2f} ({one.lost_low:.2f} - {one.lost_high:.2f})", one.bar)
        for one in found
    ]  # fmt: skip
    facts = "; ".join(f"{name} {value}" for name, value in where.items())
    return (
        "# Task accuracy by precision\n\n"
        f"Written by `{command}` at {made_at} on {facts}.\n\n"
        "Greedy answers to the first held-out questions of the shapes set, right where they are the label. ONNX "
        "Runtime ran all graphs on this CPU, also those (scatter) that GPU engines are made of: no engine of a GPU was "
        "run. A negative loss is a gain; where the interval holds 1, so few questions decide nothing.\n\n"
        f"{table(header, rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
