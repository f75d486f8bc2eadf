"""What a deployment tells of MAS: how probes read a request, what is done with it, and what was shown of the loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from msao_compile.manifest.frozen import FileRef, Frozen, Sha256, Size

ProbeName = Literal["dual", "early", "classical", "words"]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Level = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=0)]
SUM_ERROR = 1e-6


class ProbeFit(Frozen):
    """One probe's own numbers: weights of activation, novelty and relevance, b_0 .. b_3 of the chance that a modality
    is needed, and how far that chance was off on held-out samples (expected calibration error).
    """

    name: ProbeName
    weights: Annotated[tuple[Share, Share, Share], Field(min_length=3)]
    coefficients: tuple[Number, Number, Number, Number]
    ece: Share

    @model_validator(mode="after")
    def _weights_share_one(self) -> ProbeFit:
        if abs(sum(self.weights) - 1) > SUM_ERROR:
            raise ValueError(f"the weights of probe {self.name} sum to {sum(self.weights):g} instead of 1; fit again")
        return self


class Thresholds(Frozen):
    """What the search chose: share of importance kept, least share of cells, cosine of duplicate frames, the chance
    of being needed below which a modality is dropped; entropy [nats] and confidence at which drafts are flushed, and
    the most drafts of a round.
    """

    rho: Annotated[float, Field(gt=0, le=1)]
    kappa_min: Share
    s_star: Annotated[float, Field(ge=-1, le=1)]
    tau_drop: Share
    tau_entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tau_confidence: Share
    gamma_max: Annotated[int, Field(ge=1, le=64)]


class Reduction(Frozen):
    """How pictures are reduced: a thumbnail has 1 / `shrink` of each side; JPEG quality; colour of a dropped one."""

    shrink: Annotated[int, Field(ge=1, le=64)]
    quality: Annotated[int, Field(ge=1, le=100)]
    fill: tuple[Level, Level, Level]


class LossBound(Frozen):
    """What was shown on held-out samples: with `confidence`, the mean loss against the cloud is `upper` at most."""

    epsilon: Annotated[float, Field(gt=0, lt=1)]
    mean: Share
    upper: Share
    confidence: Annotated[float, Field(gt=0, lt=1)]
    method: Literal["clopper-pearson", "hoeffding-bentkus"]
    samples: Size

    @model_validator(mode="after")
    def _holds(self) -> LossBound:
        if not self.mean <= self.upper <= self.epsilon:
            raise ValueError(
                f"a loss of {self.mean:g} with the bound {self.upper:g} does not show {self.epsilon:g}; fit again"
            )
        return self


class Mas(Frozen):
    """The fitted whole. `probes` stand dearest first. Without `bound`, `calibrated` is not to be had.

    `words` is a file with the weights of words by token, `means` one with the mean frame of each modality with time.
    """

    model: str
    probes: Annotated[tuple[ProbeFit, ...], Field(min_length=1)]
    thresholds: Thresholds
    reduction: Reduction
    bound: LossBound | None = None
    words: FileRef | None = None
    means: FileRef | None = None
    samples_sha256: Sha256
    seeds: dict[str, Count]
    evidence: FileRef | None = None
