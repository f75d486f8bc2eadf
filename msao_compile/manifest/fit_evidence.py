"""`evidence/mas.json`: what fitting saw, tried and showed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from msao_compile.manifest.frozen import Frozen
from msao_compile.manifest.mas import Level, LossBound, ProbeName, Rung, SampleSets, Share, Thresholds

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class ReliabilityBin(Frozen):
    """Of `count` samples whose chance was said to be about `chance`, this share came true."""

    chance: Share
    share: Share
    count: Count


class Reliability(Frozen):
    """How far one chance was off on held-out samples; `ece` is the expected calibration error."""

    name: str
    what: str
    bins: tuple[ReliabilityBin, ...]
    ece: Share


class Answered(Frozen):
    """How one way of answering fared on a set: shares of right answers, of answers equal to the cloud's, tokens."""

    way: str
    right: Share
    as_cloud: Share
    tokens: Annotated[float, Field(ge=0)]


class SetSummary(Frozen):
    """What the models said to one set of samples. `drafts_kept` is the share of the cloud's tokens that the drafter,
    told all before, would have said.
    """

    name: Literal["fit", "held out"]
    samples: Count
    pictures: Count
    answered: tuple[Answered, ...]
    drafts_kept: Share


class CurvePoint(Frozen):
    """The edge's answers stand from a sureness on: the share of them, their mean loss and its upper bound."""

    tau_alone: Share
    share: Share
    loss: Share
    upper: Share


class Trial(Frozen):
    """One point of the search: what was tried, and what it came to on the samples that are fitted on."""

    number: Count
    parameters: dict[str, Any]
    mean_ms: Milliseconds
    alone: Share
    loss: Share
    upper: Share
    holds: bool


class Candidate(Frozen):
    """One step of the test on held-out samples, from safe to fast. `risk` and `mean_ms` are of the samples fitted on,
    all else of those held out. `verdict`: whether its bound held; what comes after one that did not is not tested.
    """

    tau_alone: Share | None
    tau_drop: Share
    probe: ProbeName = "words"
    reduced: tuple[Rung, ...]
    risk: Share
    mean_ms: Milliseconds
    share_alone: Share | None = None
    share_dropped: Share | None = None
    lost: Count | None = None
    loss: Share | None = None
    upper: Share | None = None
    verdict: Literal["held", "failed", "not tested"]


class Reference(Frozen):
    """The link that costs were reckoned with, and the devices where they were declared and not measured."""

    mbps: Annotated[float, Field(gt=0)]
    rtt_ms: Milliseconds
    devices: tuple[str, str] | None = None


class MasEvidence(Frozen):
    """The whole of it. `chosen` is what the manifest took; times are reckoned, with the manifest's primitives
    unless `link` names devices."""

    task: str
    epsilon: Annotated[float, Field(gt=0, lt=1)]
    link: Reference
    samples: SampleSets
    seeds: dict[str, Count]
    sets: tuple[SetSummary, ...]
    words: dict[str, float]
    fill: tuple[Level, Level, Level]
    reliability: tuple[Reliability, ...]
    trials: tuple[Trial, ...]
    candidates: tuple[Candidate, ...]
    curve: tuple[CurvePoint, ...]
    chosen: Thresholds
    bound: LossBound | None
    costs_ms: dict[str, Milliseconds]
    seconds: dict[str, float]
