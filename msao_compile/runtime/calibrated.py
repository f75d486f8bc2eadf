"""The mode `calibrated`: what of a request is needed, and whether the edge's answer stands, by what `fit` showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msao_compile.errors import DeploymentError
from msao_compile.manifest.mas import Mas, Sure
from msao_compile.runtime.conversation import Prompt, without_pictures
from msao_compile.runtime.mas.payload import Rung
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.mas.reading import Action
from msao_compile.runtime.mas.sure import hope, prior, sureness
from msao_compile.runtime.session import ModelSession

CLOUD_PRICE = 0.25
"""Milliseconds of waiting that a millisecond of an idle cloud is worth: whether a likely answer of the edge's own is
waited for before the cloud is asked."""


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
    """What is left of a request: how much of its pictures crosses (`drop`: neither side sees them), who judges the
    edge's answer, and the chances that this stands and that the pictures are needed.
    """

    rung: Rung
    judge: Judge | None
    chance: float
    needed: float

    @property
    def drop(self) -> bool:
        """Whether neither side sees the pictures."""
        return self.rung == "drop"


@dataclass(frozen=True)
class Cost:
    """Milliseconds: what asking the edge first costs where its answer does not stand, and what of the cloud's time is
    spared where it does; `waiting` prompts wait there, each for as long.
    """

    edge_ms: float
    cloud_ms: float
    waiting: float = 0.0


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
        self.mas, self.session, self.reader = mas, session, Reader(mas, session)

    def read(self, prompt: Prompt, pictures: int, cost: Cost, seen: Seen | None = None) -> Reduced:
        """One request; `seen` is what the reader's `pieces` left."""
        mas = self.mas
        ids = self.session.prepare(without_pictures(prompt), ()).ids
        words = frozenset(ids.tolist())
        action, needed = self.reader.action(ids, pictures, seen or Seen())
        rung = self._rung(action, pictures)
        likely = prior(mas.sure, words)
        threshold = mas.thresholds.tau_alone
        if threshold is None:
            return Reduced(rung, None, likely, needed)
        first = likely * (CLOUD_PRICE + cost.waiting) * cost.cloud_ms >= (1 - likely) * cost.edge_ms
        judge = Judge(mas.sure, words, bool(pictures) and rung != "drop", threshold, first)
        return Reduced(rung, judge, likely, needed)

    def _rung(self, action: Action, pictures: int) -> Rung:
        """Of what was shown to lose little, the least that the reading asks for."""
        shown = self.mas.reduced
        if action == "drop" and "drop" in shown:
            return "drop"
        if action == "reduce" and "regions" in shown:
            return "regions"
        return "thumbnail" if pictures and "thumbnail" in shown else "full"
