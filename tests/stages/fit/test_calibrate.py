"""Candidates are tested from safe to fast, and what comes after a failure is never taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msao_compile.runtime.bounds import clopper_pearson
from msao_compile.stages.fit.calibrate import Side, calibrate, candidates, curve
from msao_compile.stages.fit.costs import Drafts
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.outcomes import Knobs, Marks, outcome
from msao_compile.stages.fit.record import Record
from tests.stages.fit.made import RIGHT, costs, record

BEST = Knobs(0.95, 0.0, None, None, Drafts(4, 0.5))


def side(sure: np.ndarray, wrong: np.ndarray, needed: float = 1.0, blind: float = 0.0) -> Side:
    """A record for each chance that the edge's answer is the cloud's; `wrong` says whether it is none.

    `blind` is that chance without the picture, and `needed` the chance that it is needed.
    """
    records: list[Record] = [record(edge="no" if one else RIGHT) for one in wrong]
    return Side(
        costs(records),
        Marks.of(records),
        Guesses(sure, np.full(len(sure), blind), {"words": np.full(len(sure), needed)}),
    )


def test_the_bound_is_of_the_loss_that_was_seen() -> None:
    sure = np.linspace(0.5, 1.0, 500)
    fit, held = side(sure, sure < 0.9), side(sure, sure < 0.9)
    found = calibrate(BEST, fit, held, 0.02)
    assert found.knobs is not None and found.bound is not None and found.knobs.tau_alone is not None
    alone = sure >= found.knobs.tau_alone
    lost = int((alone & (sure < 0.9)).sum())
    assert found.bound.mean == lost / 500 and found.bound.upper == clopper_pearson(lost, 500) <= 0.02
    faster = [one for one in found.candidates if one.tau_alone is not None and one.tau_alone < found.knobs.tau_alone]
    assert faster and [one.verdict for one in faster] == ["failed"] + ["not tested"] * (len(faster) - 1)


def test_what_comes_after_a_failure_is_not_taken_even_if_it_would_hold() -> None:
    """To let few answers stand looks safe and loses much; to drop every picture looks risky and loses nothing."""
    sure = np.where(np.arange(400) < 40, 0.995, 0.3)
    best = replace(BEST, tau_drop=0.1)
    held = side(sure, sure > 0.9, needed=0.05)
    found = calibrate(best, side(sure, np.zeros(400, np.bool_), needed=0.05), held, 0.01)
    verdicts = [one.verdict for one in found.candidates]
    assert verdicts[0] == "failed" and set(verdicts[1:]) == {"not tested"}
    dropping = next(one for one in found.candidates if one.tau_drop > 0)
    knobs = replace(best, tau_alone=dropping.tau_alone, tau_drop=dropping.tau_drop)
    assert not outcome(knobs, held.costs, held.marks, held.guesses).lost_N.any()
    assert found.knobs is None and found.bound is None


def test_a_few_samples_show_nothing() -> None:
    sure = np.linspace(0.5, 1.0, 40)
    none = np.zeros(40, np.bool_)
    found = calibrate(BEST, side(sure, none), side(sure, none), 0.01)
    assert found.bound is None and found.candidates[0].lost == 0
    assert found.candidates[0].upper == pytest.approx(clopper_pearson(0, 40)) and found.candidates[0].upper > 0.07


def test_candidates_come_from_safe_to_fast() -> None:
    sure = np.linspace(0.5, 1.0, 300)
    found = candidates(BEST, side(sure, sure < 0.7))
    risks, times = [risk for _, risk, _ in found], [mean_ms for _, _, mean_ms in found]
    assert risks == sorted(risks) and times == sorted(times, reverse=True) and len(set(times)) == len(times) > 5
    idle_ms = costs([record()]).best("full", BEST.drafts)[0]
    assert times[0] < idle_ms


def test_candidates_are_chosen_without_the_samples_that_they_are_tested_on() -> None:
    sure = np.linspace(0.5, 1.0, 300)
    fit = side(sure, sure < 0.7)
    told = [
        [(one.tau_alone, one.tau_drop, one.risk, one.mean_ms) for one in calibrate(BEST, fit, held, 0.01).candidates]
        for held in (side(sure, sure < 0.6), side(sure[::-1].copy(), sure < 0.95))
    ]
    assert told[0] == told[1]


def test_a_loss_above_what_is_allowed_is_let_through_once_in_twenty_at_most() -> None:
    """Planted: every share of answers that stands alone loses 2 % or more, and 1 % is allowed."""
    chance, held = np.random.default_rng(5), 0
    sure = np.full(400, 0.995)
    fit = side(sure, np.zeros(400, np.bool_))
    for _ in range(200):
        held += calibrate(BEST, fit, side(sure, chance.random(400) < 0.02), 0.01).bound is not None
    assert held / 200 <= 0.05


def test_the_curve_trades_answers_alone_against_loss() -> None:
    sure = np.linspace(0.5, 1.0, 200)
    points = curve(BEST, side(sure, sure < 0.9))
    assert [one.share for one in points] == sorted((one.share for one in points), reverse=True)
    for one in points:
        lost = ((sure >= one.tau_alone) & (sure < 0.9)).sum()
        assert one.loss == lost / 200 and one.upper == pytest.approx(clopper_pearson(int(lost), 200))
