"""A manifest's MAS says nothing that was not shown."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from msao_compile.manifest.mas import LossBound, Mas

BOUND: dict[str, Any] = {
    "epsilon": 0.01, "mean": 0.001, "upper": 0.008, "confidence": 0.95, "method": "clopper-pearson", "samples": 900,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "model": "edge",
    "probes": [{"name": "early", "weights": [0.2, 0.3, 0.5], "coefficients": [0.0, 1.0, -1.0, 2.0], "ece": 0.02}],
    "thresholds": {"rho": 0.8, "kappa_min": 0.1, "s_star": 0.9, "tau_drop": 0.01, "tau_entropy": 1.0,
                   "tau_confidence": 0.5, "gamma_max": 8},
    "reduction": {"shrink": 4, "quality": 85, "fill": [84, 96, 112]},
    "bound": BOUND,
    "samples_sha256": "0" * 64,
    "seeds": {"split": 1, "search": 2},
}  # fmt: skip


def test_what_was_fitted_comes_back_from_json() -> None:
    found = Mas.model_validate(GOOD)
    assert Mas.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("change", [{"upper": 0.011}, {"mean": 0.009}, {"epsilon": 0.005}])
def test_a_bound_that_shows_less_than_it_claims_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="does not show"):
        LossBound.model_validate({**BOUND, **change})


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.4], [0.5, 0.7, -0.2]])
def test_weights_share_one(weights: list[float]) -> None:
    probe = {**GOOD["probes"][0], "weights": weights}
    with pytest.raises(ValidationError):
        Mas.model_validate({**GOOD, "probes": [probe]})
