"""A task's probe at work: it reads requests, and gives way to the words where it takes too much of the time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import PromptError
from msao_compile.manifest.mas import Mas, ProbeName
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.conversation import Prompt
from msao_compile.runtime.device import Work
from msao_compile.runtime.mas.fitted import form, settings
from msao_compile.runtime.mas.measures import needed
from msao_compile.runtime.mas.probes import PROBE, Look, Probe, Readings, cheaper, open_probe
from msao_compile.runtime.mas.reading import Action
from msao_compile.runtime.mas.words import prompt_score
from msao_compile.runtime.preprocess.decode import decode
from msao_compile.runtime.session import ModelSession, Request

if TYPE_CHECKING:
    from PIL.Image import Image

ENOUGH = 5
"""Requests that tell how long a probe takes."""
CLOUD = "cloud/"
"""Begins the names of modules that a clock holds of the cloud."""
logger = logging.getLogger(__name__)


@dataclass
class Seen:
    """What was made of a request while it was read: how the drafter takes it, and what the probe found."""

    request: Request | None = None
    readings: Readings = field(default_factory=Readings)


class Reader:
    """The probe that was fitted for a task, for requests of its drafter."""

    def __init__(self, mas: Mas, session: ModelSession) -> None:
        self.mas, self.session, self.form = mas, session, form(mas)
        self._words = next((one.coefficients for one in mas.probes if one.name == "words"), None)
        self._weights = dict(zip(mas.words.tokens, mas.words.weights, strict=True))
        self._probe: Probe | None = None
        self._probe_ms = self._ttft_ms = 0.0
        self._count = 0
        self.name: ProbeName = mas.thresholds.probe

    def pieces(
        self, prompt: Prompt, pictures: Sequence[Any], seen: Seen, clock: Clock
    ) -> Iterator[tuple[Work, int, Callable[[], None]]]:
        """The work of looking at a request, for the drafter's device; none where the words are all that is read.

        What it makes goes into `seen`, and the drafter goes on from there.
        """
        if not pictures or self.name == "words":
            return
        if self._probe is None:
            self._probe = open_probe(self.name, settings(self.mas, self.name), self.session)
        probe = self._probe
        shown: tuple[Image, ...] = ()

        def prepared() -> None:
            nonlocal shown
            with clock.module("preprocess"):
                shown = tuple(decode(picture) for picture in pictures)
                seen.request = self.session.prepare(prompt, shown)

        def read() -> None:
            assert seen.request is not None  # prepared before
            words = prompt if isinstance(prompt, str) else ""
            seen.readings = probe.read(Look(words, shown, seen.request), self.session, clock)

        yield "prepare", len(pictures), prepared
        yield ("encode" if self.name == "early" else "probe"), len(pictures), read

    def words(self, prompt: Prompt) -> np.ndarray | None:
        """A prompt that has no places for pictures as the drafter's tokens; None where it has no words either."""
        try:
            return self.session.prepare(prompt, ()).ids
        except PromptError:
            return None

    def action(self, text_ids: np.ndarray, pictures: int, seen: Seen) -> tuple[Action, float]:
        """What to do with a request's pictures, and the chance that they are needed.

        Args:
            text_ids: the prompt without its pictures, as the drafter's tokens.
            pictures: how many there are.
            seen: what `pieces` left; where nothing looked, the words alone decide.
        """
        if not pictures:
            return "full", 1.0
        reading = seen.readings.of.get("image")
        if reading is not None:
            return reading.action, reading.needed
        if self._words is None:
            return "full", 1.0
        chance = needed(self._words, 0.0, 0.0, prompt_score(text_ids, self._weights))
        return ("drop" if chance < self.mas.thresholds.tau_drop else "full"), chance

    def learn(self, clock: Clock) -> None:
        """What a request that was looked at took here until its first token. A probe that takes more than its share of
        that gives way for good, to the words: what they lose was shown beside it.
        """
        if self.name == "words" or PROBE not in clock.modules_ms:
            return
        here = {name: ms for name, ms in clock.modules_ms.items() if not name.startswith(CLOUD)}
        self._probe_ms, self._ttft_ms = self._probe_ms + here[PROBE], self._ttft_ms + sum(here.values())
        self._count += 1
        if self._count >= ENOUGH and cheaper(self.name, self._probe_ms, self._ttft_ms) != self.name:
            share = self._probe_ms / self._ttft_ms
            logger.info("probe %s takes %.1f %% of the time to first token: the words read from now on",
                        self.name, 100 * share)  # fmt: skip
            self.name = "words"
