"""The probe `dual`: a small model that compares pictures with texts (CLIP, SigLIP) looks at parts of each picture."""

from __future__ import annotations

import logging

import numpy as np

from msao_compile.errors import MsaoError
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.mas.layout import Tile
from msao_compile.runtime.mas.measures import Floats
from msao_compile.runtime.mas.probes import PROBE, Look, Readings, Settings, whole_pictures
from msao_compile.runtime.mas.reading import dense, read_features
from msao_compile.runtime.mas.words import prompt_score
from msao_compile.runtime.session import ModelSession

logger = logging.getLogger(__name__)
PARTS = 3
"""A picture is cut into 3 x 3 parts, which go through the encoder side by side."""
WORDS = 64
"""Tokens of a prompt that are read: no text encoder of this kind takes fewer (SigLIP 64, CLIP 77)."""


class Dual:
    """Reads pictures in the space that they share with texts; the drafter's own modules stay idle."""

    def __init__(self, settings: Settings, session: ModelSession) -> None:
        self.settings = settings
        self.session = session

    def read(self, look: Look, session: ModelSession, clock: Clock) -> Readings:
        """See `Probe.read`; only pictures are read. A dual encoder that fails leaves them dense, with a warning."""
        if not look.pictures:
            return Readings()
        tiles = tuple(Tile(PARTS, PARTS, picture) for picture in range(len(look.pictures)))
        phi = prompt_score(look.request.ids, self.settings.words)
        with clock.module(PROBE):
            try:
                parts_ND, text_1D = self._embeds(look)
            except MsaoError as error:
                logger.warning("the dual encoder %s failed, so pictures are sent whole: %s", self._name, error)
                whole = whole_pictures(look)
                return Readings({"image": dense([tile.grid for tile in whole["image"]])}, whole)
            grids = [tile.grid for tile in tiles]
            reading = read_features(parts_ND, text_1D, phi, grids, self.settings.fitted, self.settings.limits)
        return Readings({"image": reading}, {"image": tiles})

    @property
    def _name(self) -> str:
        return self.session.model.name

    def _embeds(self, look: Look) -> tuple[Floats, Floats]:
        """Parts of the pictures [N, D] and the prompt [1, D]."""
        parts = [
            picture.resize(picture.size, box=_box(picture.size, row, column))
            for picture in look.pictures
            for row in range(PARTS)
            for column in range(PARTS)
        ]
        tensors = self.session.preprocessor(parts).tensors
        ids = self.session.tokenizer.encode(look.prompt)
        cut = ids if len(ids) <= WORDS else [*ids[: WORDS - 1], ids[-1]]  # the last token is the end, which is read
        found = self.session.encode({**tensors, "input_ids": np.asarray([cut], np.int64)}, Clock())
        return np.asarray(found["image_embeds"]), np.asarray(found["text_embeds"])


def _box(size: tuple[int, int], row: int, column: int) -> tuple[float, float, float, float]:
    width, height = size
    return (
        width * column / PARTS, height * row / PARTS, width * (column + 1) / PARTS, height * (row + 1) / PARTS,
    )  # fmt: skip
