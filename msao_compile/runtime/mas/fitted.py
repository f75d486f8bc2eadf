"""What a manifest's MAS is to the runtime: settings of probes, and how pictures are reduced."""

from __future__ import annotations

from msao_compile.errors import DeploymentError
from msao_compile.manifest.mas import Mas, ProbeName
from msao_compile.runtime.mas.payload import Form
from msao_compile.runtime.mas.probes import Settings
from msao_compile.runtime.mas.reading import Fitted, Limits
from msao_compile.runtime.mas.temporal import TemporalLimits


def settings(mas: Mas, probe: ProbeName) -> Settings:
    """What `open_probe` takes for a probe.

    Raises:
        DeploymentError: this probe was not fitted.
    """
    found = next((one for one in mas.probes if one.name == probe), None)
    if found is None:
        names = ", ".join(one.name for one in mas.probes)
        raise DeploymentError(f"probe {probe!r} was not fitted for task {mas.task!r}: take {names}")
    thresholds = mas.thresholds
    limits = Limits(
        thresholds.rho, thresholds.kappa_min, thresholds.tau_drop, TemporalLimits(thresholds.s_star)
    )  # fmt: skip
    words = dict(zip(mas.words.tokens, mas.words.weights, strict=True))
    return Settings(Fitted(found.weights, found.coefficients), limits, words)


def form(mas: Mas) -> Form:
    """How `payload.pack` reduces pictures."""
    return Form(mas.reduction.shrink, mas.reduction.quality, mas.reduction.fill)
