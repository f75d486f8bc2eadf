"""A manifest's MAS says nothing that was not shown."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from msao_compile.manifest.mas import LossBound, Mas, Sure, WordWeights

BOUND: dict[str, Any] = {
    "epsilon": 0.01, "mean": 0.001, "upper": 0.008, "confidence": 0.95, "method": "clopper-pearson", "samples": 900,
}  # fmt: skip
SURE: dict[str, Any] = {
    "words": [3, 7], "base": [0.5, 1.0, 0.25, 0.1, -0.2, 0.3], "of_word": [1.0, -1.0], "of_word_least": [0.0, 0.5],
    "prior_base": -0.5, "prior_of_word": [2.0, -2.0], "ece": 0.02, "prior_ece": 0.03,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "task": "vqa", "drafter": "edge", "verifier": "cloud",
    "probes": [{"name": "early", "weights": [0.2, 0.3, 0.5], "coefficients": [0.0, 1.0, -1.0, 2.0], "ece": 0.02}],
    "words": {"tokens": [3, 7], "weights": [2.0, -2.0]},
    "sure": SURE,
    "thresholds": {"rho": 0.8, "kappa_min": 0.1, "s_star": 0.9, "tau_drop": 0.01, "tau_alone": 0.95,
                   "tau_confidence": 0.5, "gamma_max": 8},
    "reduction": {"shrink": 4, "quality": 85, "fill": [84, 96, 112]},
    "reduced": ["drop"],
    "bound": BOUND,
    "samples": {"fit_sha256": "0" * 64, "fit": 1200, "held_out_sha256": "1" * 64, "held_out": 900},
    "seeds": {"split": 1, "search": 2},
}  # fmt: skip


def test_what_was_fitted_comes_back_from_json() -> None:
    found = Mas.model_validate(GOOD)
    assert Mas.model_validate_json(found.model_dump_json(exclude_none=True)) == found


@pytest.mark.parametrize("change", [{"upper": 0.011}, {"mean": 0.009}, {"epsilon": 0.005}])
def test_a_bound_that_shows_less_than_it_claims_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="does not show"):
        LossBound.model_validate({**BOUND, **change})


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.4], [0.5, 0.7, -0.2]])
def test_weights_share_one(weights: list[float]) -> None:
    probe = {**GOOD["probes"][0], "weights": weights}
    with pytest.raises(ValidationError):
        Mas.model_validate({**GOOD, "probes": [probe]})


@pytest.mark.parametrize(("reduced", "tau_alone"), [(["drop"], None), ([], 0.95), (["regions"], 0.95)])
def test_nothing_is_given_up_without_a_bound_of_the_loss(reduced: list[str], tau_alone: float | None) -> None:
    without = {**GOOD, "bound": None, "reduced": reduced, "thresholds": {**GOOD["thresholds"], "tau_alone": tau_alone}}
    with pytest.raises(ValidationError, match="without a bound"):
        Mas.model_validate(without)
    strict = {**without, "reduced": [], "thresholds": {**GOOD["thresholds"], "tau_alone": None}}
    assert not Mas.model_validate(strict).calibrated(0.5)


@pytest.mark.parametrize(("epsilon", "holds"), [(0.0079, False), (0.008, True), (0.02, True)])
def test_a_loss_is_allowed_where_the_bound_is_no_larger(epsilon: float, holds: bool) -> None:
    assert Mas.model_validate(GOOD).calibrated(epsilon) is holds


def test_words_and_their_numbers_are_as_many() -> None:
    with pytest.raises(ValidationError, match="words has 2 words and 1 numbers"):
        WordWeights.model_validate({"tokens": [1, 2], "weights": [0.5]})
    for name in ("of_word", "of_word_least", "prior_of_word"):
        with pytest.raises(ValidationError, match="sure has 2 words and 1 numbers"):
            Sure.model_validate({**SURE, name: [1.0]})
    with pytest.raises(ValidationError):
        Sure.model_validate({**SURE, "base": [1.0]})
