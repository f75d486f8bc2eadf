"""Where in its picture each unit of a vision encoder lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msao_compile.runtime.mas.measures import Bools
from msao_compile.runtime.preprocess.prepared import Preprocessor
from msao_compile.runtime.preprocess.tiled import TiledPreprocessor, first_size, tiled_size

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SECONDS_PER_FRAME = 0.01
"""Of a spectrogram: a hop of 160 samples at 16 kHz, that of Whisper's feature extractor and those made after it."""


@dataclass(frozen=True)
class Tile:
    """A grid of units and what it covers: a picture's number, and left, top, right and bottom in shares of it."""

    rows: int
    columns: int
    picture: int
    box: Box = WHOLE

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    def boxes(self, kept: Bools) -> list[Box]:
        """What the kept units [rows, columns] cover, a box for each run of them in a row."""
        left, top, right, bottom = self.box
        across, down = (right - left) / self.columns, (bottom - top) / self.rows
        found = []
        for row, cells in enumerate(kept):
            edges = np.flatnonzero(np.diff(np.concatenate([[False], cells, [False]])))
            for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                found.append(
                    (left + start * across, top + row * down, left + stop * across, top + (row + 1) * down)
                )  # fmt: skip
        return found


def whole(pictures: int) -> tuple[Tile, ...]:
    """Each picture as one unit: the layout of what nothing is known of."""
    return tuple(Tile(1, 1, picture) for picture in range(pictures))


def picture_tiles(
    preprocessor: Preprocessor, sizes: Sequence[tuple[int, int]], tensors: Mapping[str, np.ndarray], units: int
) -> tuple[Tile, ...] | None:
    """The grids of so many units over pictures of `sizes` (width, height), in the encoder's order; None if unknown.

    Encoders that give no square number of units for a picture (class tokens, resamplers) have no layout.
    """
    found: tuple[Tile, ...] | None
    if isinstance(preprocessor, TiledPreprocessor):
        found = _tiled(preprocessor, sizes)
    elif "image_grid_thw" in tensors:
        found = _packed(tensors["image_grid_thw"], units)
    else:
        found = _squares([(picture, WHOLE) for picture in range(len(sizes))], units)
    fits = found is not None and sum(tile.rows * tile.columns for tile in found) == units
    return found if fits else None


def frame_grids(grid_thw: np.ndarray, units: int) -> list[tuple[int, int]] | None:
    """A grid for every frame of packed clips or pictures (frames, rows and columns of patches), merged to `units`."""
    merged = int(np.asarray(grid_thw).prod(-1).sum()) / units if units else 0.0
    side = math.isqrt(int(merged))
    if not units or side * side != merged:
        return None
    return [
        (rows // side, columns // side)
        for frames, rows, columns in np.asarray(grid_thw).tolist()
        for _ in range(frames)
    ]  # fmt: skip


def seconds(tensors: Mapping[str, np.ndarray]) -> float:
    """How long the sounds of a request are, without padding."""
    mask = tensors.get("feature_attention_mask")
    frames = mask.sum() if mask is not None else tensors["input_features"].shape[-1]
    return float(frames) * SECONDS_PER_FRAME


def _tiled(preprocessor: TiledPreprocessor, sizes: Sequence[tuple[int, int]]) -> tuple[Tile, ...]:
    """Row after row of tiles, then the picture as a whole; the whole alone where it is not cut."""
    side = math.isqrt(preprocessor.tokens.image_seq_len)
    found = []
    for picture, (width, height) in enumerate(sizes):
        rows = columns = 1
        if preprocessor.splits:
            sized = first_size(height, width, preprocessor.size) if preprocessor.size is not None else (height, width)
            edge = preprocessor.tile_edge
            rows, columns = (length // edge for length in tiled_size(*sized, edge))
        if rows * columns > 1:
            found += [
                Tile(side, side, picture, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
                for row in range(rows)
                for column in range(columns)
            ]
        found.append(Tile(side, side, picture))
    return tuple(found)


def _packed(grid_thw: np.ndarray, units: int) -> tuple[Tile, ...] | None:
    grids = frame_grids(grid_thw, units)
    if grids is None or len(grids) != len(grid_thw):
        return None
    return tuple(Tile(rows, columns, picture) for picture, (rows, columns) in enumerate(grids))


def _squares(places: Sequence[tuple[int, Box]], units: int) -> tuple[Tile, ...] | None:
    side = math.isqrt(units // max(1, len(places)))
    return tuple(Tile(side, side, picture, box) for picture, box in places)
