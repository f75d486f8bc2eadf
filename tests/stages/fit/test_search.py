"""The search keeps the loss bounded, tries what the samples can tell, and finds the same again."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from msao_compile.errors import MissingTool
from msao_compile.stages.fit.costs import Drafts
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.outcomes import Knobs, Marks, outcome
from msao_compile.stages.fit.record import LEVELS, Record, Reduced
from msao_compile.stages.fit.search import Found, optimiser, search
from tests.stages.fit.made import RIGHT, costs, record

SURE = np.linspace(0.5, 1.0, 500)
NEEDED = np.linspace(1.0, 0.0, 500)
GUESSES = Guesses(SURE, SURE, {"classical": NEEDED, "words": NEEDED})


def found(some: list[Record], seed: int = 0, trials: int = 24) -> Found:
    return search(costs(some), GUESSES, 0.02, trials, seed, lambda number: None)


def wrong_below(chance: float) -> list[Record]:
    return [record(edge=RIGHT if sure >= chance else "no", text="no") for sure in SURE]


def test_the_fastest_trial_whose_loss_is_bounded_is_taken() -> None:
    some = wrong_below(0.8)
    best = found(some)
    holding = [one for one in best.trials if one.holds]
    assert 0 < len(holding) < len(best.trials) == 24
    came = outcome(best.knobs, costs(some), Marks.of(some), GUESSES)
    assert float(came.ms_N.mean()) == pytest.approx(min(one.mean_ms for one in holding), rel=0.02)
    assert came.lost_N.mean() <= 0.02 and came.alone_N.mean() > 0.2
    assert best.knobs.tau_drop < 0.1  # whatever is dropped here is lost


def test_the_same_seed_finds_the_same() -> None:
    some = wrong_below(0.8)
    assert found(some, seed=3) == found(some, seed=3) != found(some, seed=4)


def test_what_the_samples_say_nothing_of_is_not_searched() -> None:
    texts = [record(picture=None) for _ in SURE]
    best = found(texts, trials=4)
    assert (best.knobs.tau_drop, best.knobs.rung) == (0.0, None)
    assert set(best.trials[0].parameters) == {"doubt", "gamma_max", "tau_confidence"}


def test_reduced_pictures_are_tried_where_they_were_asked_about() -> None:
    less = {level: Reduced("no" if level is None else RIGHT, 10, 0.5) for level in LEVELS}
    best = found([record(picture=200_000, text="no", reduced=less) for _ in SURE])
    # The thumbnail is as fast, and loses everything; and what is cut was looked at.
    assert (best.knobs.rung, best.knobs.probe) == ("regions", "classical")
    assert {one.parameters["rung"] for one in best.trials} == {"full", "regions", "thumbnail"}


def test_the_first_trial_is_the_guess_that_a_deployment_has_before() -> None:
    first = found(wrong_below(0.8), trials=1)
    assert first.knobs == Knobs(0.99, 0.01, None, (0.8, 0.3), Drafts(4, 0.3))


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingTool, match=r"pip install 'msao-compile\[fit\]'"):
        optimiser()
