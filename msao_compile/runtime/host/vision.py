"""Indices, segments and interpolation weights of vision towers that pack patches of pictures of any size.

Shape suffixes: N pictures or clips, P patches of all of them, M merged tokens, K taps of one patch.
Grids are [N, 3]: frames, rows and columns of patches.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime import positions
from msao_compile.runtime.positions import Ints

Floats = NDArray[np.float32]

KEYS_A = -0.75
"""The free parameter of the bicubic convolution kernel, as torch.nn.functional.interpolate fixes it."""


def vision_cu_seqlens(grid_thw: NDArray[np.integer], merge_temporal: bool = False) -> tuple[NDArray[np.int32]]:
    """`cu_seqlens` [segments + 1] int32: a segment is a frame, or the whole clip with `merge_temporal`.

    Source: transformers/vision_utils.py, get_vision_cu_seqlens.
    """
    if not merge_temporal:
        return (positions.attention_seqlens(grid_thw),)
    ends = np.asarray(grid_thw, dtype=np.int64).prod(axis=1).cumsum()
    return (np.concatenate([[0], ends]).astype(np.int32),)


def vision_attention_seqlens(grid_thw: NDArray[np.integer], merge_temporal: bool = False) -> tuple[NDArray[np.int32]]:
    """`cu_seqlens` [segments + 1] int32 of the pair that the model gets; the longest segment is not an array.

    Source: transformers/vision_utils.py, get_vision_attention_seqlens.
    """
    return vision_cu_seqlens(grid_thw, merge_temporal)


def vision_position_ids(
    grid_thw: NDArray[np.integer],
    spatial_merge_size: int | NDArray[np.integer],
    include_temporal: bool = False,
) -> tuple[Ints]:
    """`position_ids` [P, 2] (row, column) or [P, 3] (frame first) int64, in merge-block order.

    `spatial_merge_size` is one for all pictures or one for each, [N].

    Source: transformers/vision_utils.py, get_vision_position_ids.
    """
    grids = np.asarray(grid_thw, dtype=np.int64)
    merges_N = np.broadcast_to(np.asarray(spatial_merge_size), len(grids))
    pieces = [
        positions.vision_position_ids(grid[None], int(merge)) for grid, merge in zip(grids, merges_N, strict=True)
    ]
    places = np.concatenate(pieces)
    if not include_temporal:
        return (places,)
    frames_P = np.concatenate([np.repeat(np.arange(frames), rows * columns) for frames, rows, columns in grids])
    return (np.column_stack([frames_P, places]),)


def vision_window_index(
    grid_thw: NDArray[np.integer], spatial_merge_size: int, window_size: int, patch_size: int
) -> tuple[Ints, NDArray[np.int32]]:
    """`window_index` [M] int64 and `cu_window_seqlens` [windows + 1] int32, in patches.

    Source: transformers/vision_utils.py, get_vision_window_index.
    """
    return positions.window_index(np.asarray(grid_thw), spatial_merge_size, window_size, patch_size)


def vision_interpolation_indices_and_weights(
    grid_thw: NDArray[np.integer],
    num_grid_per_side: int,
    mode: str = "bilinear",
    align_corners: bool = False,
    spatial_merge_size: int = 1,
    padding: str = "border",
) -> tuple[Ints, Floats]:
    """What resamples a square table of learned positions to each picture's grid, in merge-block order.

    Args:
        grid_thw: [N, 3].
        num_grid_per_side: the table has this many rows and columns.
        mode: `bilinear` (K = 4) or `bicubic` (K = 16).
        align_corners: the first and last patches lie on the table's first and last entries.
        spatial_merge_size: patches along one side of a merged token.
        padding: taps outside the table take its edge (`border`) or count nothing (`zeros`).

    Returns:
        `indices` [P, K] int64 into the flattened table and `weights` [P, K] float32, bit for bit.

    Source: transformers/vision_utils.py, get_vision_interpolation_indices_and_weights.
    """
    grids = np.asarray(grid_thw, dtype=np.int64)
    patches_N = grids.prod(axis=1)
    (places,) = vision_position_ids(grids, spatial_merge_size)
    settings = (num_grid_per_side, mode, align_corners, padding)
    row_taps, row_weights = _axis_taps(places[:, 0], np.repeat(grids[:, 1], patches_N), *settings)
    column_taps, column_weights = _axis_taps(places[:, 1], np.repeat(grids[:, 2], patches_N), *settings)
    indices = row_taps[:, :, None] * num_grid_per_side + column_taps[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return indices.reshape(len(places), -1), weights.reshape(len(places), -1)


def vision_bilinear_indices_and_weights(
    grid_thw: NDArray[np.integer], num_grid_per_side: int, spatial_merge_size: int, align_corners: bool = True
) -> tuple[Ints, Floats]:
    """`indices` [4, P] int64 and `weights` [4, P] float32; corners are aligned whatever `align_corners` says.

    Source: transformers/vision_utils.py, get_vision_bilinear_indices_and_weights (deprecated there).
    """
    indices, weights = vision_interpolation_indices_and_weights(
        grid_thw, num_grid_per_side, align_corners=True, spatial_merge_size=spatial_merge_size
    )
    return indices.T, weights.T


def _axis_taps(
    index_P: Ints, size_P: Ints, side: int, mode: str, align_corners: bool, padding: str
) -> tuple[Ints, Floats]:
    """[P, taps] places on an axis of `side` entries, and weights, of patch `index_P` among `size_P`, in float32."""
    size = size_P.astype(np.float32)
    index = index_P.astype(np.float32)
    if align_corners:
        source = index * np.float32(side - 1) / np.maximum(size - np.float32(1), np.float32(1))
    else:
        source = (index + np.float32(0.5)) * np.float32(side) / size - np.float32(0.5)
    floor = np.floor(source)
    offsets = np.arange(2) if mode == "bilinear" else np.arange(-1, 3)
    outside = floor.astype(np.int64)[:, None] + offsets
    taps = outside.clip(0, side - 1)
    distance = np.abs((source - floor)[:, None] - offsets.astype(np.float32))
    weights = _kernel(distance, mode)
    if padding == "zeros":
        weights = weights * (outside == taps)
    return taps, weights.astype(np.float32, copy=False)


def _kernel(distance: Floats, mode: str) -> Floats:
    """The weight at each distance, evaluated in Horner's order as torch does it."""
    if mode == "bilinear":
        linear: Floats = np.maximum(np.float32(1) - distance, np.float32(0))
        return linear
    if mode != "bicubic":
        raise ValueError(f"The interpolation mode is {mode!r}; it must be 'bilinear' or 'bicubic'.")
    a = np.float32(KEYS_A)
    near: Floats = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far: Floats = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights: Floats = np.where(distance <= 1, near, far)
    return weights


def vision_nearest_position_ids(target_sizes: NDArray[np.integer], num_patches_per_side: int) -> tuple[Ints]:
    """`position_ids` [P] int64: the nearest entry of a square table for each patch, in raster order.

    `target_sizes` is [N, 2]: rows and columns of patches.

    Source: transformers/vision_utils.py, get_vision_nearest_position_ids.
    """
    boundaries = positions.bucket_boundaries(num_patches_per_side)
    pieces = []
    for sizes in np.asarray(target_sizes).tolist():
        rows, columns = (
            np.searchsorted(boundaries, np.arange(size, dtype=np.float32) / np.float32(size), side="right")
            for size in sizes
        )
        pieces.append((rows[:, None] * num_patches_per_side + columns).ravel())
    return (np.concatenate(pieces).astype(np.int64),)


def vision_merged_shape(target_sizes: NDArray[np.integer], window_kernel_size: tuple[int, int]) -> tuple[Ints, Ints]:
    """Rows and columns [] int64 of the first picture after its windows are merged; all pictures are of one size.

    Source: transformers/vision_utils.py, get_vision_merged_shape.
    """
    rows, columns = np.asarray(target_sizes, dtype=np.int64)[0] // np.asarray(window_kernel_size)
    return np.asarray(rows), np.asarray(columns)


def vision_frame_index(grid_thw: NDArray[np.integer]) -> tuple[Ints]:
    """`frame_index` [P] int64: the frame each patch is in counted from 1, or 0 in pictures.

    Source: transformers/models/kimi_k25/modeling_kimi_k25.py, get_vision_frame_index.
    """
    grids = np.asarray(grid_thw, dtype=np.int64).tolist()
    frames = [np.repeat(np.arange(count) + int(count > 1), rows * columns) for count, rows, columns in grids]
    return (np.concatenate(frames),)


def vision_temporal_merge_index(grid_thw: NDArray[np.integer], kernel_height: int, kernel_width: int) -> tuple[Ints]:
    """[M, frames, kernel_height * kernel_width] int64: the patches that pool into each merged token.

    All pictures or clips have the same number of frames.

    Source: transformers/models/kimi_k25/modeling_kimi_k25.py, get_vision_temporal_merge_index.
    """
    offset = 0
    pieces = []
    for frames, rows, columns in np.asarray(grid_thw, dtype=np.int64).tolist():
        blocks = (frames, rows // kernel_height, kernel_height, columns // kernel_width, kernel_width)
        patches = np.arange(offset, offset + frames * rows * columns).reshape(blocks)
        pieces.append(patches.transpose(1, 3, 0, 2, 4).reshape(-1, frames, kernel_height * kernel_width))
        offset += frames * rows * columns
    return (np.concatenate(pieces),)


def vision_pixel_shuffle_index(grid_thw: NDArray[np.integer], merge_size: int) -> tuple[Ints]:
    """`pixel_shuffle_index` [P] int64: raster order turned into merge-block order, frame by frame.

    Source: transformers/models/muse_glimmer/modeling_muse_glimmer.py and muse_spark, get_vision_pixel_shuffle_index.
    """
    grids = np.asarray(grid_thw, dtype=np.int64)
    patches_N = grids.prod(axis=1)
    (places,) = vision_position_ids(grids, merge_size, include_temporal=True)
    frame, row, column = places.T
    rows_P, columns_P = np.repeat(grids[:, 1], patches_N), np.repeat(grids[:, 2], patches_N)
    start_P = np.repeat(patches_N.cumsum() - patches_N, patches_N)
    return (start_P + (frame * rows_P + row) * columns_P + column,)


def vision_frame_pairs(grid_thw: NDArray[np.integer], spatial_merge_size: int) -> tuple[Ints, Ints]:
    """[M] int64 each: the merged tokens of frames 0, 2, 4 .. and of those after them; a picture's are both.

    A last frame without one after it is left out.

    Source: transformers/models/ernie4_5_vl_moe/modeling_ernie4_5_vl_moe.py, _temporal_slicing.
    """
    offset = 0
    pieces: list[tuple[Ints, Ints]] = []
    for frames, rows, columns in np.asarray(grid_thw, dtype=np.int64).tolist():
        tokens = rows * columns // spatial_merge_size**2
        places = np.arange(offset, offset + frames * tokens).reshape(frames, tokens)
        second = places[min(1, frames - 1) :: 2]
        pieces.append((places[::2][: len(second)].reshape(-1), second.reshape(-1)))
        offset += frames * tokens
    first, second = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return first, second
