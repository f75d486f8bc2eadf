"""Which device holds which module of a deployment, and the certificate that says how good that is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msao_compile.manifest.frozen import Frozen, Sha256

Objective = Literal["mean", "p95"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PlacementCertificate(Frozen):
    """How good a placement is known to be: none has an objective below `bound_s`.

    `objective_s` is the sum of weight x latency (`mean`), or the least latency that 95 % of the weight is at most
    (`p95`). `gap` is (objective - bound) / objective; at most `tolerance` is called optimal. `seconds` is what it took.
    """

    objective: Objective
    objective_s: Seconds
    bound_s: Seconds
    gap: Annotated[float, Field(ge=0, le=1)]
    solver: Literal["greedy", "local", "exact"]
    seconds: Seconds
    tolerance: Annotated[float, Field(gt=0, lt=1)]

    @property
    def optimal(self) -> bool:
        """Whether no placement is better, within the tolerance."""
        return self.gap <= self.tolerance


class PlacedCopy(Frozen):
    """A copy of what is placed as one, under the name that requests use; `ids` are its modules in the manifest.

    `dtype` is None where none was chosen.
    """

    module: Annotated[str, Field(min_length=1)]
    ids: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    device: Annotated[str, Field(min_length=1)]
    dtype: str | None = None


class Placement(Frozen):
    """Where a deployment's modules are, and why there."""

    copies: Annotated[tuple[PlacedCopy, ...], Field(min_length=1)]
    certificate: PlacementCertificate
