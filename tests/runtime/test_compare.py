"""Distances and verdicts: a table of situations."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.errors import GateError
from msao_compile.manifest.evidence import ParityEvidence, ParityRow
from msao_compile.runtime.compare import ROWS, Distance, distance, refuse_failures, verdict

ROW = np.array([[1.0, 2.0, 4.0]])
BOUNDS = {"min_cosine": 0.99, "max_abs": 0.1, "argmax_agreement": 0.995}


def found(max_abs: float = 0.01, cosine: float = 1.0, agreement: float = 1.0, ties: bool = True) -> Distance:
    return Distance(max_abs, cosine, agreement, ties, 8)


@pytest.mark.parametrize(
    ("measured", "bounds", "word"),
    [
        (found(), BOUNDS, "PASS"),
        (found(max_abs=0.1), BOUNDS, "PASS"),
        (found(max_abs=0.11), BOUNDS, "FAIL"),
        (found(cosine=0.98), BOUNDS, "FAIL"),
        (found(agreement=0.9, ties=False), BOUNDS, "FAIL"),
        (found(agreement=0.9, ties=True), BOUNDS, "AMBIGUOUS"),
        (found(max_abs=0.11, agreement=0.9, ties=True), BOUNDS, "FAIL"),
        (found(max_abs=9.0), {"min_cosine": 0.99}, "PASS"),
        (found(), {}, "AMBIGUOUS"),
        (found(), {"max_abs": None}, "AMBIGUOUS"),
        (found(max_abs=float("nan")), BOUNDS, "FAIL"),
        (found(cosine=float("nan")), BOUNDS, "FAIL"),
    ],
)
def test_a_verdict_follows_from_the_bounds_and_no_bound_is_no_pass(
    measured: Distance, bounds: dict[str, float | None], word: str
) -> None:
    assert verdict(measured, bounds)[0] == word


def test_equal_arrays_are_no_distance_apart() -> None:
    assert distance([(ROW, ROW)]) == Distance(0.0, 1.0, 1.0, True, 1)


def test_the_worst_row_of_all_pairs_counts() -> None:
    measured = distance(
        [(ROW, ROW), (np.array([[1.0, 2.5, 4.0], [0.0, 1.0, 0.0]]), np.array([[1.0, 2.0, 4.0], [1.0, 0.0, 0.0]]))]
    )
    assert (measured.max_abs, measured.min_cosine, measured.compared) == (1.0, pytest.approx(0.0, abs=1e-12), 3)
    assert measured.argmax_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("ours", "original", "tie"),
    [
        ([0.0, 1.000, 1.005], [0.0, 1.005, 1.000], True),
        ([0.0, 1.00, 1.20], [0.0, 1.20, 1.00], False),
        ([0.0, 1.00, 9.00], [0.0, 9.00, 1.00], False),  # a large error is no excuse for itself
    ],
)
def test_another_largest_entry_is_a_near_tie_only_where_the_original_hardly_chose(
    ours: list[float], original: list[float], tie: bool
) -> None:
    measured = distance([(np.array([ours]), np.array([original]))])
    assert measured.argmax_agreement == 0.0
    assert measured.near_ties_only is tie


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails_every_bound(bad: float) -> None:
    measured = distance([(np.array([[1.0, bad, 4.0]]), ROW)])
    for name, limit in BOUNDS.items():
        assert verdict(measured, {name: limit})[0] == "FAIL"


def test_a_reference_that_is_not_finite_never_passes() -> None:
    measured = distance([(ROW, np.array([[1.0, np.nan, 4.0]]))])
    assert verdict(measured, BOUNDS)[0] == "FAIL"


def test_arrays_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\) cannot be compared with \(1, 2\)"):
        distance([(ROW, ROW[:, :2])])


def row(word: str, max_abs: float, precision: str = "fp32") -> ParityRow:
    return ParityRow.model_validate({
        "model": "edge", "subject": "whole", "dialect": "fused", "backend": "ort", "precision": precision,
        "verdict": word, "max_abs": max_abs, "min_cosine": 0.5, "argmax_agreement": 1.0, "compared": 4,
        "bound": "max_abs 0.001",
    })  # fmt: skip


def test_a_failed_row_closes_the_gate_with_exit_5_and_names_the_worst() -> None:
    evidence = ParityEvidence(rows=(row("PASS", 0.0), row("FAIL", 0.25), row("FAIL", 0.5)), bounds={})
    with pytest.raises(
        GateError, match=r"edge/whole \(fused, ort\): max abs 0.5.*bound max_abs 0.001; 2 of 3"
    ) as caught:
        refuse_failures(evidence, "msao-compile parity r.toml --bisect")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(("precision", "is_named"), [("fp32", False), ("decoder int4, lm_head fp32", True)])
def test_a_failure_of_less_than_fp32_names_the_command_that_finds_the_block(precision: str, is_named: bool) -> None:
    with pytest.raises(GateError) as caught:
        refuse_failures(ParityEvidence(rows=(row("FAIL", 0.5, precision),), bounds={}), "tool --bisect")
    assert ("`tool --bisect`" in str(caught.value)) is is_named


def test_an_ambiguous_row_leaves_the_gate_open() -> None:
    refuse_failures(ParityEvidence(rows=(row("AMBIGUOUS", 0.5),), bounds={}), "")


@pytest.mark.parametrize(("ours", "original"), [(0 * ROW, ROW), (ROW, 0 * ROW)])
def test_a_row_of_zeros_is_nothing_like_another_row(ours: np.ndarray, original: np.ndarray) -> None:
    measured = distance([(ours, original)])
    assert measured.min_cosine == 0.0
    assert verdict(measured, {"min_cosine": 0.99})[0] == "FAIL"


def test_two_rows_of_zeros_are_equal() -> None:
    assert distance([(0 * ROW, 0 * ROW)]).min_cosine == 1.0


def test_every_row_of_many_is_looked_at() -> None:
    chance = np.random.default_rng(0)
    original = chance.standard_normal((3, 2 * ROWS + 5, 7)).astype(np.float32)
    ours = original.copy()
    ours[2, -1, 3] += 2.0
    measured = distance([(original, original), (ours, original)])
    assert (measured.max_abs, measured.compared) == (pytest.approx(2.0, abs=1e-6), 6 * (2 * ROWS + 5))
    ours[1, ROWS, 0] = np.nan
    assert not np.isfinite(ours).all()
    assert distance([(original, original), (ours, original)]).max_abs > 1e300
