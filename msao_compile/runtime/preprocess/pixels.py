"""Arithmetic every picture processor shares: RGB, sizes, resizing, and pixels to normalised numbers.

Shape suffixes: H height, W width, C channel, V the 256 values of a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import InputError, PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_RESIZED_PIXELS = 2**26
"""A thin picture grows without bound when its short edge is scaled up; above this the picture is refused."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PixelScale:
    """How a byte becomes a number: `(value * factor - mean) / std`, each half optional."""

    factor: float | None
    mean: Triple | None
    std: Triple | None

    def table(self) -> NDArray[np.float32]:
        """`table_CV` [3, 256]: the number for each value in each channel.

        Rescaled in float64 and rounded, normalised in float32 (transformers.image_transforms.rescale, normalize), so
        looking a value up is bit for bit what that arithmetic gives on the whole picture.
        """
        values_V = np.arange(256, dtype=np.float64)
        if self.factor is not None:
            values_V = values_V * self.factor
        table_CV = np.tile(values_V.astype(np.float32), (3, 1))
        if self.mean is None or self.std is None:
            return table_CV
        mean_C, std_C = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        return np.asarray((table_CV - mean_C[:, None]) / std_C[:, None], dtype=np.float32)


def to_numbers(image: Image, table_CV: NDArray[np.float32]) -> NDArray[np.float32]:
    """An RGB picture as [3, height, width] float32 through `PixelScale.table`."""
    bytes_HWC = np.asarray(image)
    numbers_CHW = np.empty((3, image.height, image.width), dtype=np.float32)
    for channel in range(3):
        np.take(table_CV[channel], bytes_HWC[..., channel], out=numbers_CHW[channel])
    return numbers_CHW


def to_rgb(image: Image) -> Image:
    """RGB, with transparency laid on white (transformers.image_transforms.convert_to_rgb)."""
    from PIL import Image as pil

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    background = pil.new("RGBA", image.size, (255, 255, 255, 255))
    return pil.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def resize(image: Image, height: int, width: int, resample: int) -> Image:
    """Resize to exactly [height, width] with a Pillow filter number.

    Raises:
        PictureError: the result would be empty or larger than `MAX_RESIZED_PIXELS`.
    """
    from PIL.Image import Resampling

    if height < 1 or width < 1 or height * width > MAX_RESIZED_PIXELS:
        raise PictureError(
            f"A picture of {image.width} x {image.height} would be resized to {width} x {height} pixels;"
            " crop it to a less extreme shape."
        )
    return image.resize((width, height), resample=Resampling(resample))


def center_crop(image: Image, height: int, width: int) -> Image:
    """The middle [height, width] of a picture, black where the picture is smaller.

    Offsets round as in transformers.image_transforms.center_crop.
    """
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def pad_to_square(image: Image, color: tuple[int, int, int]) -> Image:
    """Centre a picture on a square of one colour, as LlavaImageProcessor does."""
    from PIL import Image as pil

    side = max(image.size)
    square = pil.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def target_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The [height, width] a processor's `size` asks for (transformers PilBackend.resize).

    Raises:
        InputError: `size` has none of the known sets of keys.
    """
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if shortest and longest:
        return _bounded_edges(height, width, shortest, longest)
    if shortest:
        grown = int(shortest * max(height, width) / min(height, width))
        return (grown, shortest) if width <= height else (shortest, grown)
    if size.get("max_height") and size.get("max_width"):
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    raise InputError(
        f"The image processor's size {dict(size)} is not understood; it needs shortest_edge, height and width,"
        " or max_height and max_width."
    )


def _bounded_edges(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """transformers.image_transforms.get_size_with_aspect_ratio, rounding included."""
    short, long = min(height, width), max(height, width)
    exact = float(shortest)
    if long / short * shortest > longest:
        exact = longest * float(short) / float(long)
    edge = round(exact)
    if short == edge:
        return height, width
    if width < height:
        return int(exact * height / width), edge
    return edge, int(exact * width / height)
