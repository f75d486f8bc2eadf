"""Pictures at their own size, as a flat list of patches: the Qwen2-VL and Qwen2.5-VL processor.

Shape suffixes: H, W grid rows and columns of merged patches, M merge size, C channel, T temporal patch, P patch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import InputError, PictureError
from msao_compile.runtime.preprocess import pixels
from msao_compile.runtime.preprocess.cropped import BICUBIC, CLIP_MEAN, CLIP_STD
from msao_compile.runtime.preprocess.prepared import Prepared
from msao_compile.runtime.preprocess.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PatchGrid:
    """Edge lengths in pixels (`patch_size`), patches (`merge_size`) and frames (`temporal_patch_size`)."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @property
    def factor(self) -> int:
        """Both edges of a picture are multiples of this many pixels."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class PatchedPreprocessor:
    """Resize within a pixel budget, then lay the patches out in the order the encoder merges them."""

    scale: pixels.PixelScale
    resample: int
    resizes: bool
    min_pixels: int
    max_pixels: int
    grid: PatchGrid
    image_token: str

    @property
    def placeholder(self) -> str:
        """The image token."""
        return self.image_token

    def __call__(self, images: Sequence[Image]) -> Prepared:
        """Give `pixel_values` [patches, 3 * temporal_patch_size * patch_size ** 2] float32 and `image_grid_thw`
        [num_images, 3] int64 (frames, rows and columns of patches).

        Raises:
            PictureError: a picture is more than 200 times as long as wide, or its size does not fit the grid.
        """
        if not images:
            return Prepared()
        table_CV = self.scale.table()
        sized = [self._sized(pixels.to_rgb(image)) for image in images]
        size = self.grid.patch_size
        grid_thw = np.array([[1, image.height // size, image.width // size] for image in sized], dtype=np.int64)
        patches = [patchify(pixels.to_numbers(image, table_CV), self.grid) for image in sized]
        counts = grid_thw.prod(axis=1) // self.grid.merge_size**2
        return Prepared(
            {"pixel_values": np.concatenate(patches), "image_grid_thw": grid_thw},
            tuple(self.image_token * int(count) for count in counts),
        )

    def _sized(self, image: Image) -> Image:
        if self.resizes:
            height, width = smart_size(image.height, image.width, self.grid.factor, self.min_pixels, self.max_pixels)
            return pixels.resize(image, height, width, self.resample)
        if image.height % self.grid.factor or image.width % self.grid.factor:
            raise PictureError(
                f"A picture of {image.width} x {image.height} does not divide into {self.grid.factor} x"
                f" {self.grid.factor} pixels and this checkpoint does not resize; resize it before."
            )
        return image


def smart_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """[height, width] in multiples of `factor` with an area within the budget and nearly the same aspect ratio.

    Source: smart_resize in transformers' image_processing_qwen2_vl.py.

    Raises:
        PictureError: the aspect ratio is above 200.
    """
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise PictureError(
            f"A picture of {width} x {height} is more than {MAX_ASPECT_RATIO} times as long as wide; crop it."
        )
    sized = round(height / factor) * factor, round(width / factor) * factor
    if sized[0] * sized[1] > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        floor = math.floor(height / shrink / factor) * factor, math.floor(width / shrink / factor) * factor
        return max(factor, floor[0]), max(factor, floor[1])
    if sized[0] * sized[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return sized


def patchify(numbers_CHW: NDArray[np.float32], grid: PatchGrid) -> NDArray[np.float32]:
    """[patches, C * T * P * P]: patches in merge-block order, a still picture repeated over the T frames."""
    channels, height, width = numbers_CHW.shape
    size, merge, frames = grid.patch_size, grid.merge_size, grid.temporal_patch_size
    rows, columns = height // grid.factor, width // grid.factor
    blocks_CHMPWMP = numbers_CHW.reshape(channels, rows, merge, size, columns, merge, size)
    patches_HWMMCPP = blocks_CHMPWMP.transpose(1, 4, 2, 5, 0, 3, 6)
    patches_HWMMCTPP = np.repeat(patches_HWMMCPP[:, :, :, :, :, None], frames, axis=5)
    return patches_HWMMCTPP.reshape(rows * columns * merge**2, channels * frames * size**2)


def read(config: Settings, processor: Settings) -> PatchedPreprocessor:
    """Qwen2VLImageProcessor; `min_pixels` and `max_pixels` of older files win over `size`."""
    size = config.size("size", {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280})
    min_pixels = config.integer("min_pixels", size.get("shortest_edge", 0))
    max_pixels = config.integer("max_pixels", size.get("longest_edge", 0))
    if min_pixels < 1 or max_pixels < 1:
        raise InputError(f"{config.name} has size = {size}; it must have shortest_edge and longest_edge, in pixels.")
    return PatchedPreprocessor(
        scale=config.pixel_scale(CLIP_MEAN, CLIP_STD),
        resample=config.integer("resample", BICUBIC),
        resizes=config.flag("do_resize", True),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        grid=PatchGrid(
            patch_size=config.integer("patch_size", 14),
            merge_size=config.integer("merge_size", 2),
            temporal_patch_size=config.integer("temporal_patch_size", 2),
        ),
        image_token=processor.text("image_token", "<|image_pad|>"),
    )
