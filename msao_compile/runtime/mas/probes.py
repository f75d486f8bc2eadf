"""Probes: what looks at a request before it is decided who answers it, and when a cheaper one takes over."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.mas.layout import Box, Tile, whole
from msao_compile.runtime.mas.measures import Floats
from msao_compile.runtime.mas.prune import can_prune, kept_tokens, prune
from msao_compile.runtime.mas.reading import Fitted, Limits, Reading
from msao_compile.runtime.session import Conversation, ModelSession, Request

if TYPE_CHECKING:
    from PIL.Image import Image

OVERHEAD = 0.02
"""A probe may take this share of the edge's time to first token."""
PROBE = "probe"
"""The clock's name for what a probe adds to work that is done anyway."""
PROBES: dict[str, tuple[str, str]] = {
    "dual": ("msao_compile.runtime.mas.dual", "Dual"),
    "early": ("msao_compile.runtime.mas.early", "Early"),
    "classical": ("msao_compile.runtime.mas.classical", "Classical"),
    "words": ("msao_compile.runtime.mas.words_only", "WordsOnly"),
}
"""Name -> module, class; dearest first, so that the next one is cheaper."""


@dataclass(frozen=True)
class Look:
    """What a probe may look at: the user's words, the decoded pictures, and the request as the drafter takes it."""

    prompt: str
    pictures: tuple[Image, ...]
    request: Request


@dataclass(frozen=True)
class Settings:
    """What was fitted for a probe: its numbers, the limits, weights of words by token, and the sample set's mean frame
    of each modality that has time.
    """

    fitted: Fitted
    limits: Limits
    words: Mapping[int, float] = field(default_factory=dict)
    means: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Readings:
    """A reading of each modality that a request has, where its units lie, and what the drafter's modules made on the
    way: `prefill` goes on from there.
    """

    of: Mapping[str, Reading] = field(default_factory=dict)
    tiles: Mapping[str, tuple[Tile, ...]] = field(default_factory=dict)
    encoded: Arrays = field(default_factory=dict)
    embeds: Arrays = field(default_factory=dict)

    def kept_boxes(self, picture: int) -> list[Box]:
        """What is kept of a picture, in shares of it."""
        reading, tiles = self.of["image"], self.tiles["image"]
        pairs = zip(tiles, reading.kept, strict=True)
        return [box for tile, kept in pairs if tile.picture == picture for box in tile.boxes(kept)]


class Probe(Protocol):
    """Reads a request. Time of its own goes to the clock as `probe`, time of the drafter's modules under their names:
    those run once, here or in `prefill`.
    """

    def read(self, look: Look, session: ModelSession, clock: Clock) -> Readings:
        """A reading of each modality; of what cannot be measured a dense one.

        Raises:
            InputError: the drafter has no encoder for what is given.
        """


def open_probe(name: str, settings: Settings, session: ModelSession, dual: ModelSession | None = None) -> Probe:
    """The probe called `name` for requests of a drafter.

    Raises:
        InputError: there is no such probe, or `dual` is asked for without a dual encoder.
    """
    module, kind = PROBES[_known(name)]
    if name == "dual" and dual is None:
        raise InputError("probe 'dual' needs a dual encoder: add one to the task's models, or take 'early'")
    given = (settings, session) if dual is None or name != "dual" else (settings, dual)
    probe: Probe = getattr(importlib.import_module(module), kind)(*given)
    return probe


def cheaper(name: str, probe_ms: float, ttft_ms: float) -> str | None:
    """The probe to use from now on: the same while it takes 2 % of the edge's time to first token at most, else the
    next cheaper one; None where there is none, so that everything is taken for needed.

    Raises:
        InputError: there is no such probe.
    """
    known = list(PROBES)
    place = known.index(_known(name))
    if probe_ms <= OVERHEAD * ttft_ms:
        return name
    return known[place + 1] if place + 1 < len(known) else None


def prefill(
    session: ModelSession, request: Request, readings: Readings, clock: Clock, prunes: bool = False
) -> tuple[np.ndarray, Conversation]:
    """As `ModelSession.prefill`, from what a probe had made already.

    `prunes` leaves out the tokens of what the readings drop or reduce, where the decoder allows it; the others keep
    their positions. For drafts: the answer is another model's.

    Raises:
        InputError: placeholders and features differ in number.
    """
    encoded = readings.encoded or session.encode(request.tensors, clock)
    session.check_placeholders(request, encoded)
    held = {**session.context(request.tensors), **encoded}
    known = {**held, **(readings.embeds or session.embed(request.ids[None], held, clock))}
    positions = session.positions(request)
    if prunes and can_prune(session):
        known, positions = prune(known, positions, kept_tokens(session.model, request.ids, readings.of))
    return session.prefill_embeds(known, positions, clock)


def whole_pictures(look: Look) -> dict[str, tuple[Tile, ...]]:
    """The layout of pictures whose units are not known."""
    return {"image": whole(len(look.pictures))}


def _known(name: str) -> str:
    if name not in PROBES:
        near = difflib.get_close_matches(name, PROBES, n=1)
        hint = f" did you mean {near[0]}?" if near else f" choose {', '.join(PROBES)}."
        raise InputError(f"probe {name!r} is not one;{hint}")
    return name
