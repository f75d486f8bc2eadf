"""The mode `calibrated`: what of a request is needed, and whether the edge's answer stands, by what `fit` showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msao_compile.errors import DeploymentError
from msao_compile.manifest.mas import Mas, Sure
from msao_compile.runtime.conversation import Prompt, without_pictures
from msao_compile.runtime.mas.measures import needed
from msao_compile.runtime.mas.sure import hope, prior, sureness
from msao_compile.runtime.mas.words import prompt_score
from msao_compile.runtime.session import ModelSession

CLOUD_PRICE = 0.25
"""Milliseconds of waiting that a millisecond of the cloud is worth: whether a likely answer of the edge's own is waited
for before the cloud is asked."""


@dataclass(frozen=True)
class Judge:
    """Whether the edge's answer to one request stands; as `speculate.client.Alone`."""

    sure: Sure
    words: frozenset[int]
    picture_given: bool
    threshold: float
    first: bool

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether a whole answer stands."""
        return sureness(self.sure, self.words, confidences, self.picture_given) >= self.threshold

    def hopeless(self, confidences: Sequence[float]) -> bool:
        """Whether no answer that begins so can stand."""
        return hope(self.sure, self.words, confidences, self.picture_given) < self.threshold


@dataclass(frozen=True)
class Reduced:
    """What is left of a request: whether its pictures are dropped, on both sides, and who judges the edge's answer."""

    drop: bool
    judge: Judge | None
    chance: float


class Calibration:
    """A task's fit, for requests of one drafter.

    Raises:
        DeploymentError: the loss was not shown to be `epsilon` at most.
    """

    def __init__(self, mas: Mas | None, epsilon: float, session: ModelSession) -> None:
        if mas is None or mas.bound is None:
            raise DeploymentError(
                "calibrated answers need a bound of their loss, which nothing has shown yet: run `msao-compile fit "
                "DEPLOYMENT --samples FILE`"
            )
        if not mas.calibrated(epsilon):
            raise DeploymentError(
                f"calibrated({epsilon:g}) is asked for and {mas.bound.upper:g} is what was shown: allow that much, or "
                "fit with more samples"
            )
        self.mas, self.session = mas, session
        self._weights = dict(zip(mas.words.tokens, mas.words.weights, strict=True))
        self._words = next((one.coefficients for one in mas.probes if one.name == "words"), None)

    def read(self, prompt: Prompt, pictures: int, edge_ms: float, cloud_ms: float) -> Reduced:
        """One request. `edge_ms` is what asking the edge first would cost where its answer does not stand, `cloud_ms`
        what of the cloud's time would be spared where it does.
        """
        mas = self.mas
        ids = self.session.prepare(without_pictures(prompt), ()).ids
        words = frozenset(ids.tolist())
        drop = False
        if pictures and self._words is not None and "drop" in mas.reduced:
            chance = needed(self._words, 0.0, 0.0, prompt_score(ids, self._weights))
            drop = chance < mas.thresholds.tau_drop
        likely = prior(mas.sure, words)
        threshold = mas.thresholds.tau_alone
        if threshold is None:
            return Reduced(drop, None, likely)
        first = likely * CLOUD_PRICE * cloud_ms >= (1 - likely) * edge_ms
        return Reduced(drop, Judge(mas.sure, words, bool(pictures) and not drop, threshold, first), likely)
