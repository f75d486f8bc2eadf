"""The probe `words`: the prompt alone says whether pictures are needed, and all of what is needed is kept."""

from __future__ import annotations

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.mas import measures
from msao_compile.runtime.mas.probes import PROBE, Look, Readings, Settings, whole_pictures
from msao_compile.runtime.mas.reading import Reading, decide, dense
from msao_compile.runtime.mas.words import prompt_score
from msao_compile.runtime.session import ModelSession


class WordsOnly:
    """A few additions: what is left where everything else is too dear."""

    def __init__(self, settings: Settings, session: ModelSession) -> None:
        self.settings = settings

    def read(self, look: Look, session: ModelSession, clock: Clock) -> Readings:
        """See `Probe.read`; only pictures are read."""
        if not look.pictures:
            return Readings()
        with clock.module(PROBE):
            phi = prompt_score(look.request.ids, self.settings.words)
            needed = measures.needed(self.settings.fitted.coefficients, 0.0, 0.0, phi)
            tiles = whole_pictures(look)
            kept = dense([tile.grid for tile in tiles["image"]]).kept
            action = decide(needed, 1.0, self.settings.limits.tau_drop)
            return Readings({"image": Reading(needed, 0.0, 1.0, 1.0, action, kept)}, tiles)
