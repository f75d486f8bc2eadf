"""The mode `calibrated`: what of a request is needed, and whether the edge's answer stands, by what `fit` showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msao_compile.errors import DeploymentError
from msao_compile.manifest.mas import Mas, Sure
from msao_compile.runtime.conversation import Prompt, without_pictures
from msao_compile.runtime.link_state import Average
from msao_compile.runtime.mas.payload import Rung
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.mas.reading import Action
from msao_compile.runtime.mas.sure import hope, prior, sureness
from msao_compile.runtime.session import ModelSession

GUESS_LEFT = 0.5
"""Of the bytes of pictures that were never reduced."""


@dataclass(frozen=True)
class Judge:
    """Whether the edge's answer to one request stands; as `speculate.client.Alone`."""

    sure: Sure
    words: frozenset[int]
    picture_given: bool
    threshold: float
    first: bool = False

    def enough(self, confidences: Sequence[float]) -> bool:
        """Whether a whole answer stands."""
        return sureness(self.sure, self.words, confidences, self.picture_given) >= self.threshold

    def hopeless(self, confidences: Sequence[float]) -> bool:
        """Whether no answer that begins so can stand."""
        return hope(self.sure, self.words, confidences, self.picture_given) < self.threshold


@dataclass(frozen=True)
class Reduced:
    """What may be left of a request: how little of its pictures may cross (`drop`: neither side sees them), who judges
    the edge's answer, and the chances that this stands and that the pictures are needed.
    """

    rung: Rung
    judge: Judge | None
    stands: float
    needed: float


@dataclass
class Packing:
    """What reducing pictures took on this edge and what it left of their bytes, by rung, as it was seen."""

    took_ms: dict[Rung, Average] = field(default_factory=dict)
    left: dict[Rung, Average] = field(default_factory=dict)

    def learn(self, rung: Rung, before: int, after: int, took_ms: float) -> None:
        """Pictures of one request were reduced from so many bytes to so many. The first time tells nothing of how long
        that takes later, when everything is loaded.
        """
        if rung in self.left:
            self.took_ms.setdefault(rung, Average()).add(took_ms)
        self.left.setdefault(rung, Average()).add(after / max(before, 1))

    def foretold(self, rung: Rung, size_bytes: int) -> tuple[int, float]:
        """Bytes and milliseconds of a request's pictures of so many bytes on a rung."""
        if rung in ("drop", "full"):
            return (0 if rung == "drop" else size_bytes), 0.0
        share, took = self.left.get(rung), self.took_ms.get(rung)
        return round(size_bytes * (share.mean if share else GUESS_LEFT)), took.mean if took else 0.0


def shown_fit(mas: Mas | None, epsilon: float) -> Mas:
    """The fit of a task that shows so small a loss.

    Raises:
        DeploymentError: none does.
    """
    if mas is None or not mas.calibrated(epsilon):
        shown = "nothing" if mas is None or mas.bound is None else f"{mas.bound.upper:g}"
        raise DeploymentError(
            f"calibrated({epsilon:g}) is asked for and {shown} is what was shown of the loss: allow more, or run "
            "`msao-compile fit DEPLOYMENT --samples FILE`"
        )
    return mas


class Calibration:
    """A task's fit, for requests of one drafter.

    Raises:
        DeploymentError: the loss was not shown to be `epsilon` at most.
    """

    def __init__(self, mas: Mas | None, epsilon: float, session: ModelSession) -> None:
        self.mas, self.session = shown_fit(mas, epsilon), session
        self.reader = Reader(self.mas, session)

    def read(self, prompt: Prompt, pictures: int, seen: Seen | None = None) -> Reduced:
        """One request; `seen` is what the reader's `pieces` left."""
        mas = self.mas
        ids = self.reader.words(without_pictures(prompt))
        if ids is None:  # nothing was shown of questions without words
            return Reduced("full", None, 0.0, 1.0)
        words = frozenset(ids.tolist())
        action, needed = self.reader.action(ids, pictures, seen or Seen())
        rung = self._rung(action) if pictures else "full"
        threshold = mas.thresholds.tau_alone
        if threshold is None:
            return Reduced(rung, None, 0.0, needed)
        return Reduced(rung, Judge(mas.sure, words, bool(pictures), threshold), prior(mas.sure, words), needed)

    def _rung(self, action: Action) -> Rung:
        """Of what was shown to lose little, the least that the reading asks for. Where words took the place of a probe
        that was too slow, it was shown of pictures that cross whole.
        """
        shown, gave_way = self.mas.reduced, self.reader.name != self.mas.thresholds.probe
        if action == "drop" and "drop" in shown:
            return "drop"
        if action == "reduce" and "regions" in shown:
            return "regions"
        return "thumbnail" if "thumbnail" in shown and not gave_way else "full"
