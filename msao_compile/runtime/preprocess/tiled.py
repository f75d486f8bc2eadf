"""Pictures as a grid of tiles and one overview: the Idefics3 and SmolVLM processors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.errors import InputError
from msao_compile.runtime.preprocess import pixels
from msao_compile.runtime.preprocess.prepared import Prepared
from msao_compile.runtime.preprocess.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_EDGE = 4096
"""Idefics3ImageProcessor's own ceiling on either edge before tiling."""
HALF = (0.5, 0.5, 0.5)
LANCZOS = 1


@dataclass(frozen=True)
class TileTokens:
    """The text Idefics3Processor and SmolVLMProcessor write for one picture."""

    image_token: str
    fence_token: str
    overview_token: str
    image_seq_len: int

    def expansion(self, rows: int, columns: int) -> str:
        """The text for a picture of rows x columns tiles and its overview; 0 x 0 is the overview alone."""
        tokens = self.image_token * self.image_seq_len
        overview = f"{self.fence_token}{self.overview_token}{tokens}{self.fence_token}"
        if rows == 0 and columns == 0:
            return overview
        lines = (
            "".join(f"{self.fence_token}<row_{row}_col_{column}>{tokens}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        )
        return "".join(lines) + "\n" + overview


@dataclass(frozen=True)
class TiledPreprocessor:
    """Resize the longest edge, cut into square tiles, add the whole picture as one more tile."""

    scale: pixels.PixelScale
    resample: int
    size: Mapping[str, int] | None
    tile_edge: int
    splits: bool
    masks: bool
    tokens: TileTokens

    @property
    def placeholder(self) -> str:
        """The image token."""
        return self.tokens.image_token

    def __call__(self, images: Sequence[Image]) -> Prepared:
        """Give `pixel_values` [1, num_images, 3, tile_edge, tile_edge] float32 and, where the processor pads,
        `pixel_attention_mask` [1, num_images, tile_edge, tile_edge] int64; `num_images` counts tiles.

        Raises:
            PictureError: a shape is too extreme to resize.
        """
        if not images:
            return Prepared()
        cut = [self._tiles(pixels.to_rgb(image)) for image in images]
        table_CV = self.scale.table()
        pixel_values = np.stack([pixels.to_numbers(tile, table_CV) for tiles, _, _ in cut for tile in tiles])[None]
        tensors = {"pixel_values": pixel_values}
        if self.masks:
            # Every tile is tile_edge square, so the processor's padding never has anything to pad.
            mask_shape = (*pixel_values.shape[:2], *pixel_values.shape[3:])
            return Prepared(
                {**tensors, "pixel_attention_mask": np.ones(mask_shape, dtype=np.int64)}, self._expansions(cut)
            )
        return Prepared(dict(tensors), self._expansions(cut))

    def _expansions(self, cut: Sequence[tuple[list[Image], int, int]]) -> tuple[str, ...]:
        return tuple(self.tokens.expansion(rows, columns) for _, rows, columns in cut)

    def _tiles(self, image: Image) -> tuple[list[Image], int, int]:
        edge = self.tile_edge
        if self.size is not None:
            image = pixels.resize(image, *first_size(image.height, image.width, self.size), self.resample)
        if not self.splits:
            return [pixels.resize(image, edge, edge, self.resample)], 0, 0
        image = pixels.resize(image, *tiled_size(image.height, image.width, edge), self.resample)
        rows, columns = image.height // edge, image.width // edge
        if rows == 1 and columns == 1:
            return [image], 0, 0
        tiles = [
            image.crop((column * edge, row * edge, (column + 1) * edge, (row + 1) * edge))
            for row in range(rows)
            for column in range(columns)
        ]
        return [*tiles, pixels.resize(image, edge, edge, self.resample)], rows, columns


def first_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """[height, width] with the longest edge as asked, the other even, neither above `MAX_EDGE`.

    Source: get_resize_output_image_size in transformers' image_processing_idefics3.py, rounding included.

    Raises:
        InputError: `size` names neither the longest edge nor height and width.
    """
    if not size.get("longest_edge"):
        if not (size.get("height") and size.get("width")):
            raise InputError(f"The image processor's size {dict(size)} is not understood; it needs longest_edge.")
        return size["height"], size["width"]
    height, width = _scaled(height, width, size["longest_edge"], even=True)
    return _scaled(height, width, MAX_EDGE, even=False) if max(height, width) > MAX_EDGE else (height, width)


def _scaled(height: int, width: int, longest: int, even: bool) -> tuple[int, int]:
    ratio = width / height
    short = int(longest / ratio) if width >= height else int(longest * ratio)
    if even and short % 2:
        short += 1
    short = max(short, 1)
    return (short, longest) if width >= height else (longest, short)


def tiled_size(height: int, width: int, edge: int) -> tuple[int, int]:
    """[height, width] rounded up to whole tiles, the longer edge first (resize_for_vision_encoder)."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / edge) * edge
        return math.ceil(int(width / ratio) / edge) * edge, width
    height = math.ceil(height / edge) * edge
    return height, math.ceil(int(height * ratio) / edge) * edge


def read(config: Settings, processor: Settings) -> TiledPreprocessor:
    """Idefics3ImageProcessor or SmolVLMImageProcessor, whose steps are the same."""
    tile = config.size("max_image_size", {"longest_edge": 364}, "longest_edge")
    if "longest_edge" not in tile:
        raise InputError(f"{config.name} has max_image_size = {tile}; it must have longest_edge.")
    return TiledPreprocessor(
        scale=config.pixel_scale(HALF, HALF),
        resample=config.integer("resample", LANCZOS),
        size=config.size("size", {"longest_edge": 4 * 364}) if config.flag("do_resize", True) else None,
        tile_edge=tile["longest_edge"],
        splits=config.flag("do_image_splitting", True),
        masks=config.flag("do_pad", True),
        tokens=TileTokens(
            image_token=processor.text("image_token", "<image>"),
            fence_token=processor.text("fake_image_token", "<fake_token_around_image>"),
            overview_token=processor.text("global_image_token", "<global-img>"),
            image_seq_len=processor.integer("image_seq_len", 169),
        ),
    )
