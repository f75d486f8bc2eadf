"""What was fitted reaches probes and payloads as it stands in the manifest."""

from __future__ import annotations

import pytest

from msao_compile.errors import DeploymentError
from msao_compile.manifest.mas import Mas
from msao_compile.runtime.mas.fitted import form, settings
from msao_compile.runtime.mas.payload import Form
from tests.manifest.test_mas import GOOD


def test_a_probe_gets_its_numbers_the_thresholds_and_the_words() -> None:
    found = settings(Mas.model_validate(GOOD), "early")
    assert (found.fitted.weights, found.fitted.coefficients) == ((0.2, 0.3, 0.5), (0.0, 1.0, -1.0, 2.0))
    assert (found.limits.rho, found.limits.kappa_min, found.limits.tau_drop) == (0.8, 0.1, 0.01)
    assert found.limits.temporal.cosine == 0.9 and found.words == {3: 2.0, 7: -2.0}


def test_a_probe_that_was_not_fitted_is_refused() -> None:
    with pytest.raises(DeploymentError, match="probe 'dual' was not fitted for task 'vqa': take early"):
        settings(Mas.model_validate(GOOD), "dual")


def test_pictures_are_reduced_as_when_it_was_fitted() -> None:
    assert form(Mas.model_validate(GOOD)) == Form(4, 85, (84, 96, 112))
