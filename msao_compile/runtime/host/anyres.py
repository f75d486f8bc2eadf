"""Where each token of one picture comes from when a tower sees it as a thumbnail and a grid of tiles.

Rows are the features of all tiles one after the other, the thumbnail first, then the learned `image_newline` vector:
[tiles * side² + 1, hidden]. Packed tokens are `sum_n weights[:, n] * rows[taps[:, n]]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime.positions import Ints

Floats = NDArray[np.float32]

SHRINK_ABOVE = 1.1
"""LLaVA-OneVision shrinks a picture whose side exceeds what its patches allow by more than this factor."""


def anyres_tiles(image_size: Sequence[int], grid_pinpoints: Sequence[Sequence[int]], tile_size: int) -> int:
    """How many tiles a picture of `image_size` (height, width) becomes, its thumbnail among them.

    Source: image_size_to_num_patches of transformers/models/llava_next and its relatives.
    """
    height, width = best_resolution(image_size, grid_pinpoints)
    return -(-height // tile_size) * -(-width // tile_size) + 1


def anyres_index(
    image_size: Sequence[int],
    grid_pinpoints: Sequence[Sequence[int]],
    tile_size: int,
    side: int,
    max_num_patches: int | None = None,
    newline: bool = True,
    tiled: bool = True,
) -> tuple[Ints, Floats]:
    """What packs the tiles' features of one picture into its tokens.

    Args:
        image_size: height and width of the picture in pixels.
        grid_pinpoints: the heights and widths that the processor may resize to.
        tile_size: a tile's side in pixels.
        side: a tile's side in tokens of the projector.
        max_num_patches: tiles' worth of tokens that a picture may keep (the 9 of LLaVA-OneVision's `anyres_max_9`);
            None where the family never shrinks.
        newline: the last row is `image_newline`, to be written after every row of tokens.
        tiled: false for pictures that are their thumbnail alone (several pictures in one LLaVA-OneVision prompt).

    Returns:
        `taps` [tokens, n] int64 and `weights` [tokens, n] float32; n = 4 with `max_num_patches`, otherwise n = 1.

    Source: pack_image_features of transformers/models/llava_next, llava_next_video, llava_onevision, granite4_vision.
    """
    newline_row = side * side
    taps, weights = _gather(np.arange(side * side))
    if tiled:
        height, width = best_resolution(image_size, grid_pinpoints)
        down, across = height // tile_size, width // tile_size
        newline_row = (1 + down * across) * side * side
        tiles = np.arange(side * side, newline_row).reshape(down, across, side, side)
        plane = _unpadded(tiles.swapaxes(1, 2).reshape(down * side, across * side), image_size)
        packed = _shrunk(plane, side, max_num_patches)
        if newline:
            packed = _with_newlines(*packed, newline_row)
        taps, weights = _joined((taps, weights), packed)
    elif newline:
        taps, weights = _joined((taps, weights), _gather(np.array([newline_row])))
    return _widened(taps, weights, 1 if max_num_patches is None else 4)


def best_resolution(image_size: Sequence[int], grid_pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The height and width among `grid_pinpoints` that keep most of the picture's pixels and then waste fewest.

    Source: transformers/image_processing_utils.py, select_best_resolution.
    """
    height, width = image_size

    def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    best = max(grid_pinpoints, key=merit)
    return best[0], best[1]


def _gather(rows: Ints) -> tuple[Ints, Floats]:
    return rows[..., None], np.ones((*rows.shape, 1), dtype=np.float32)


def _unpadded(plane: Ints, image_size: Sequence[int]) -> Ints:
    """The middle of `plane` [rows, columns] that shows the picture and not the border that keeps its proportions.

    The arithmetic is transformers' unpad_image, rounding to seven digits included: one row decides the token count.
    """
    rows, columns = plane.shape
    height, width = image_size
    if width / height > columns / rows:
        border = (rows - int(round(height * (columns / width), 7))) // 2
        return plane[border : rows - border]
    border = (columns - int(round(width * (rows / height), 7))) // 2
    return plane[:, border : columns - border]


def _shrunk(plane: Ints, side: int, max_num_patches: int | None) -> tuple[Ints, Floats]:
    """Taps and weights [rows, columns, n] of `plane`, resampled bilinearly when it has too many tokens."""
    if max_num_patches is None:
        return _gather(plane)
    rows, columns = plane.shape
    ratio = math.sqrt(rows * columns / (max_num_patches * side**2))
    if ratio <= SHRINK_ABOVE:
        return _gather(plane)
    row_taps, row_weights = _axis_taps(rows, int(rows // ratio))
    column_taps, column_weights = _axis_taps(columns, int(columns // ratio))
    taps = plane[row_taps[:, None, :, None], column_taps[None, :, None, :]]
    weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
    return taps.reshape(*taps.shape[:2], 4), weights.reshape(*taps.shape[:2], 4)


def _axis_taps(size: int, target: int) -> tuple[Ints, Floats]:
    """[target, 2] places and weights on one axis as torch's interpolate(mode="bilinear") has them, in its float32."""
    scale = np.float32(size) / np.float32(target)
    source = np.maximum(
        scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0)
    )
    lower = np.minimum(source.astype(np.int64), size - 1)
    fraction = np.clip(source - lower.astype(np.float32), np.float32(0), np.float32(1))
    taps = np.stack([lower, np.minimum(lower + 1, size - 1)], axis=1)
    return taps, np.stack([np.float32(1) - fraction, fraction], axis=1)


def _with_newlines(taps: Ints, weights: Floats, newline_row: int) -> tuple[Ints, Floats]:
    """[rows, columns + 1, n]: the newline after each row of tokens."""
    line = np.full((len(taps), 1), newline_row, dtype=np.int64)
    line_taps, line_weights = _widened(*_gather(line), taps.shape[-1])
    return np.concatenate([taps, line_taps], axis=1), np.concatenate([weights, line_weights], axis=1)


def _joined(first: tuple[Ints, Floats], second: tuple[Ints, Floats]) -> tuple[Ints, Floats]:
    """[tokens, n]: the tokens of both, with as many taps as the wider has."""
    count = max(first[0].shape[-1], second[0].shape[-1])
    pairs = [_widened(taps, weights, count) for taps, weights in (first, second)]
    return (
        np.concatenate([taps.reshape(-1, count) for taps, _ in pairs]),
        np.concatenate([weights.reshape(-1, count) for _, weights in pairs]),
    )


def _widened(taps: Ints, weights: Floats, count: int) -> tuple[Ints, Floats]:
    """`count` taps on the last axis; those added repeat the first with weight 0."""
    missing = count - taps.shape[-1]
    edge = np.repeat(taps[..., :1], missing, axis=-1)
    nothing = np.zeros(edge.shape, dtype=np.float32)
    return np.concatenate([taps, edge], axis=-1), np.concatenate([weights, nothing], axis=-1)
