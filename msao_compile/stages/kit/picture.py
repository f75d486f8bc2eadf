"""What an encoder of pictures is fed for a picture: by the checkpoint's own processor and the host code that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from msao_compile.errors import InputError
from msao_compile.manifest.schema import Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, Engine
from msao_compile.runtime.encoding import encode
from msao_compile.runtime.preprocess import decode
from msao_compile.runtime.session import ModelSession

SIDES = (448, 224, 336, 896, 112, 64, 28)
"""Sides of the pictures that are tried, in pixels, until one gives shapes that the engine is built for."""


class Recorder:
    """An engine that keeps what it was fed last."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.inputs, self.types = engine, engine.inputs, engine.types
        self.fed: Arrays = {}

    def run(self, feed: Mapping[str, np.ndarray]) -> Arrays:
        """As the engine."""
        self.fed = dict(feed)
        return self.engine.run(feed)


def picture_feed(folder: Path, model: Model, component: str, engine: Engine, fits: Callable[[Arrays], bool]) -> Arrays:
    """Every input of an encoder for one seeded picture whose shapes fit.

    Raises:
        InputError: it is no encoder of pictures, the checkpoint has no processor for them, or no size fits.
    """
    if not any((entry.component, entry.modality) == (component, "image") for entry in model.encoders):
        raise InputError(f"{component} encodes no pictures")
    recorder = Recorder(engine)
    session = ModelSession(model, folder, {component: recorder}, None)
    for side in SIDES:
        prepared = session.preprocessor([decode(_noise(side))])
        encode(model, {component: recorder}, prepared.tensors, Clock())
        if fits(recorder.fed):
            return recorder.fed
    raise InputError(f"no picture of {', '.join(map(str, SIDES))} pixels gives shapes that its engine is built for")


def _noise(side: int) -> bytes:
    """A square picture, PPM: a ramp under seeded noise."""
    chance = np.random.default_rng(side)
    ramp = np.linspace(0, 180, side)[:, None, None] * chance.random(3)
    pixels = (ramp + chance.integers(0, 75, (side, side, 3))).astype(np.uint8)
    return f"P6 {side} {side} 255\n".encode() + pixels.tobytes()
