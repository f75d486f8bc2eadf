"""The arithmetic of the accuracy table."""

from __future__ import annotations

import pytest

from msao_compile.manifest.accuracy import Accuracy, AccuracyReport
from tests.bench.accuracy import BASE, VARIANTS, lines, markdown, paired


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ("1" * 100, "1" * 99 + "0", (1.0, -1.730, 3.691)),
        ("10", "01", (0.0, -84.869, 84.869)),
        ("0" * 50 + "1" * 50, "1" * 50 + "1" * 50, (-50.0, -58.909, -39.130)),
        ("1" * 600, "1" * 600, (0.0, -0.326, 0.326)),
    ],
)
def test_points_are_lost_on_the_same_questions(base: str, other: str, expected: tuple[float, float, float]) -> None:
    assert paired(base, other) == pytest.approx(expected, abs=1e-3)


def row(target: str, marks: str) -> Accuracy:
    right = marks.count("1")
    return Accuracy(
        targets=(target,), model="edge", dialect="scatter", precision="fp16", through="engine", right=right,
        asked=len(marks), share=right / len(marks), low=0.0, high=1.0, marks=marks,
    )  # fmt: skip


def test_a_variant_meets_the_bar_by_its_loss_and_int4_is_only_shown() -> None:
    marks = {"fp32": 100, "fp16": 99, "int8": 98, "int8-cpu": 100, "int4": 50, "int4-cpu": 100}
    rows = [row(one.target, "1" * marks[one.target] + "0" * (100 - marks[one.target])) for one in (BASE, *VARIANTS)]
    found = lines(AccuracyReport(samples="", rows=tuple(rows)))
    assert [one.bar for one in found] == ["", "yes", "no", "yes", "shown", "shown"]
    assert [round(one.lost) for one in found] == [0, 1, 2, 0, 50, 0]
    table = markdown("command", "commit", {"cpu": "some"}, found)
    assert "| 98.0 (0.0 - 100.0)" in table and "| 2.00 (" in table and "no engine of a GPU was run" in table
