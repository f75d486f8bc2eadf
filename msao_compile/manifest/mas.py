"""What a deployment tells of MAS: how probes read a request, what is done with it, and what was shown of the loss."""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated, Literal

from pydantic import Field, model_validator

from msao_compile.manifest.frozen import FileRef, Frozen, Sha256, Size

ProbeName = Literal["dual", "early", "classical", "words"]
Rung = Literal["drop", "thumbnail", "regions"]
"""Of the payload ladder, what is less than the whole picture."""
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


class WordWeights(Frozen):
    """What tokens of a prompt say of whether its pictures are needed: log odds, see `runtime.mas.words`."""

    tokens: tuple[Count, ...] = ()
    weights: tuple[Number, ...] = ()

    @model_validator(mode="after")
    def _one_weight_each(self) -> WordWeights:
        refuse_unlike("words", self.tokens, self.weights)
        return self


class Sure(Frozen):
    """How sure one may be that the edge's whole answer is what the cloud would say: two logistic regressions.

    `words` are tokens of prompts. `base` weighs what `runtime.mas.sure.describe` tells of an answer, `of_word` a word
    that the prompt has, `of_word_least` that word times the log odds of the least sure token. By the words alone,
    before anything is drafted: `prior_base` and `prior_of_word`. The errors are those of held-out samples.
    """

    words: tuple[Count, ...] = ()
    base: Annotated[tuple[Number, ...], Field(min_length=6, max_length=6)]
    of_word: tuple[Number, ...] = ()
    of_word_least: tuple[Number, ...] = ()
    prior_base: Number
    prior_of_word: tuple[Number, ...] = ()
    ece: Share
    prior_ece: Share

    @model_validator(mode="after")
    def _one_number_each(self) -> Sure:
        for numbers in (self.of_word, self.of_word_least, self.prior_of_word):
            refuse_unlike("sure", self.words, numbers)
        return self


class Thresholds(Frozen):
    """What the search chose: share of importance kept, least share of cells, cosine of duplicate frames; the chance
    of being needed below which pictures are dropped (on both sides: text alone); the sureness from which the edge's
    answer stands, None where it never does; the confidence below which drafts are flushed, and the most drafts of a
    round. `probe` reads requests; where it takes too long `words` does, which was tested with it.
    """

    rho: Annotated[float, Field(gt=0, le=1)]
    kappa_min: Share
    s_star: Annotated[float, Field(ge=-1, le=1)]
    tau_drop: Share
    tau_alone: Share | None = None
    tau_confidence: Share
    gamma_max: Annotated[int, Field(ge=1, le=64)]
    probe: ProbeName = "words"


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


class SampleSets(Frozen):
    """From which samples: digests of what both sets hold, and how many they are. No sample is in both."""

    fit_sha256: Sha256
    fit: Size
    held_out_sha256: Sha256
    held_out: Size


class Mas(Frozen):
    """The fitted whole of one task. `probes` stand dearest first.

    `reduced` are the payloads below the whole picture that may cross in `calibrated`, each where its threshold says so.
    Without `bound`, `calibrated` is not to be had, and `reduced` and `tau_alone` hold nothing.
    """

    task: str
    drafter: str
    verifier: str
    probes: Annotated[tuple[ProbeFit, ...], Field(min_length=1)]
    words: WordWeights
    sure: Sure
    thresholds: Thresholds
    reduction: Reduction
    reduced: tuple[Rung, ...] = ()
    bound: LossBound | None = None
    samples: SampleSets
    seeds: dict[str, Count]
    evidence: FileRef | None = None

    @model_validator(mode="after")
    def _nothing_without_its_bound(self) -> Mas:
        if self.bound is None and (self.reduced or self.thresholds.tau_alone is not None):
            raise ValueError(
                "mas lets the edge answer alone or reduces pictures without a bound of the loss; fit it again"
            )
        return self

    def calibrated(self, epsilon: float) -> bool:
        """Whether the loss was shown to be `epsilon` at most."""
        return self.bound is not None and self.bound.upper <= epsilon


def refuse_unlike(what: str, words: Sized, numbers: Sized) -> None:
    """As many numbers as words.

    Raises:
        ValueError: they differ.
    """
    if len(words) != len(numbers):
        raise ValueError(f"{what} has {len(words)} words and {len(numbers)} numbers; fit again")
