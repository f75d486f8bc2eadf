"""Small pictures of every mode and odd size that the preprocessors must treat as transformers does."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth ramps with noise on top, the same for the same arguments."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    chance = np.random.default_rng(width * 4099 + height)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    values = np.clip(ramp + chance.integers(0, 56, (height, width, bands)), 0, 255).astype(np.uint8)
    return Image.fromarray(values[..., 0] if bands == 1 else values, mode="L" if bands == 1 else None).convert(mode)


def transparent_palette() -> Image.Image:
    picture = noise(40, 30).quantize(16)
    picture.info["transparency"] = 3
    return picture


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.arange(37 * 29, dtype=np.uint16) * 61).reshape(29, 37))


def exif_rotated() -> Image.Image:
    picture = noise(50, 20)
    picture.getexif()[0x0112] = 6
    return picture


MODES: dict[str, Image.Image] = {
    "L": noise(33, 21, "L"),
    "LA": noise(31, 47).convert("LA"),
    "RGBA": Image.merge("RGBA", [*noise(53, 40).split(), noise(53, 40, "L")]),
    "P": noise(41, 27).quantize(32),
    "P transparent": transparent_palette(),
    "PA": noise(40, 31).quantize(16).convert("PA"),
    "1": noise(19, 45, "L").convert("1"),
    "I;16": sixteen_bit(),
    "I": noise(25, 25, "L").convert("I"),
    "F": noise(26, 25, "L").convert("F"),
    "CMYK": noise(64, 48).convert("CMYK"),
    "YCbCr": noise(30, 70).convert("YCbCr"),
    "HSV": noise(30, 29).convert("HSV"),
    "exif": exif_rotated(),
}
SIZES: dict[str, Image.Image] = {
    f"{width}x{height}": noise(width, height)
    for width, height in [(1, 1), (2, 3), (7, 101), (28, 28), (56, 57), (97, 131), (224, 224), (363, 365), (640, 427)]
}
THIN: dict[str, Image.Image] = {"1x300": noise(1, 300), "300x1": noise(300, 1)}
LARGE: dict[str, Image.Image] = {"4000x151": noise(4000, 151)}
