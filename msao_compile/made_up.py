"""What is asked where nobody gave anything to ask about: a picture of noise over a ramp."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDE = 256
"""Pixels."""


def picture() -> bytes:
    """A seeded picture that compresses about as well as a photograph, PNG."""
    ramp = np.linspace(0, 200, SIDE)
    noise = np.random.default_rng(0).integers(0, 55, (SIDE, SIDE, 3))
    pixels = (ramp[:, None, None] * 0.5 + ramp[None, :, None] * 0.5 + noise).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
