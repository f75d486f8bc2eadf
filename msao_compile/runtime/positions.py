"""Host-side positions, windows and segments that host functions and runtime bind as graph inputs.

Shape suffixes: B batch, S sequence (tokens of the language model), N pictures or clips, P patches of all pictures,
W windows, H and V rows and columns of one picture's patch grid. Grids are [N, 3]: frames, rows and columns of patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msao_compile.errors import PromptError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class VideoGrids:
    """Clips of a prompt.

    `grid_thw` [N, 3]; `frame_steps` gives, for each clip, the distance between the positions of two frames: 1 for
    Qwen2-VL, `tokens_per_second * second_per_grid_t` for Qwen2.5-VL.
    """

    grid_thw: NDArray[np.integer]
    frame_steps: tuple[float, ...]


def mrope_positions(
    input_ids_S: NDArray[np.integer],
    image_token_id: int,
    video_token_id: int,
    image_grid_thw: NDArray[np.integer] | None,
    spatial_merge_size: int,
    videos: VideoGrids | None = None,
) -> tuple[Ints, int]:
    """Positions of Qwen2-VL and Qwen2.5-VL: `position_ids` [3, S] (time, row, column) and `delta`.

    A later token at index i of the sequence has position i + `delta` on all three axes. Equal to the models'
    `get_rope_index` on one unpadded prompt; neighbouring pictures need no text between them here.

    Raises:
        PromptError: the prompt's image or video tokens do not match the grids.
    """
    grids = {
        image_token_id: _image_grids(image_grid_thw),
        video_token_id: [] if videos is None else list(zip(videos.grid_thw.tolist(), videos.frame_steps, strict=True)),
    }
    queues = {token_id: iter(found) for token_id, found in grids.items()}
    ids = np.asarray(input_ids_S)
    visual = np.isin(ids, list(queues))
    pieces: list[Ints] = []
    index = next_position = 0
    while index < len(ids):
        if visual[index]:
            grid, step = next(queues[int(ids[index])], ((0, 0, 0), 1.0))
            piece = _grid_positions(grid, step, spatial_merge_size)
            grown = max(grid[1], grid[2]) // spatial_merge_size
            _check_run(ids[index : index + piece.shape[1]], int(ids[index]), piece.shape[1], index)
        else:
            later = np.flatnonzero(visual[index:])
            grown = int(later[0]) if len(later) else len(ids) - index
            piece = np.tile(np.arange(grown, dtype=np.int64), (3, 1))
        pieces.append(piece + next_position)
        next_position += grown
        index += piece.shape[1]
    if left := sum(1 for queue in queues.values() for _ in queue):
        raise PromptError(f"The prompt has no tokens for {left} of its pictures or clips; write their placeholders.")
    position_ids = np.concatenate(pieces, axis=1) if pieces else np.zeros((3, 0), dtype=np.int64)
    return position_ids, int(position_ids.max(initial=-1)) + 1 - len(ids)


def _image_grids(image_grid_thw: NDArray[np.integer] | None) -> list[tuple[tuple[int, int, int], float]]:
    return [] if image_grid_thw is None else [(tuple(grid), 1.0) for grid in image_grid_thw.tolist()]


def _grid_positions(grid: tuple[int, int, int], frame_step: float, merge: int) -> Ints:
    """[3, tokens] of one picture or clip from 0; frame times are rounded down in float32, as torch does."""
    frames, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    times = (np.arange(frames, dtype=np.float32) * np.float32(frame_step)).astype(np.int64)
    axes = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack(axes).reshape(3, -1).astype(np.int64)


def _check_run(run: NDArray[np.integer], token_id: int, expected: int, index: int) -> None:
    if expected == 0:
        raise PromptError(f"The prompt has tokens {token_id} at {index} for a picture or clip that was not given.")
    if len(run) < expected or (run != token_id).any():
        found = int((run == token_id).cumprod().sum())
        raise PromptError(
            f"The prompt has {found} tokens {token_id} at {index} where its picture or clip takes {expected};"
            " expand the placeholders with the preprocessor of the same checkpoint."
        )


def vision_position_ids(grid_thw: NDArray[np.integer], merge: int) -> Ints:
    """`position_ids` [P, 2]: row and column of each patch, in merge-block order, frames one after the other.

    Source: transformers.vision_utils.get_vision_position_ids.
    """
    grids = grid_thw.tolist()
    return np.concatenate([_block_order(frames, rows, columns, merge) for frames, rows, columns in grids])


def _block_order(frames: int, rows: int, columns: int, merge: int) -> Ints:
    places = np.indices((rows, columns), dtype=np.int64)
    blocks = places.reshape(2, rows // merge, merge, columns // merge, merge).swapaxes(2, 3)
    return np.tile(blocks.reshape(2, -1).T, (frames, 1))


def window_index(
    grid_thw: NDArray[np.integer], merge: int, window_size: int, patch_size: int
) -> tuple[Ints, NDArray[np.int32]]:
    """The order of merged tokens by attention window, and where windows end.

    Args:
        grid_thw: [N, 3] in patches.
        merge: patches along one side of a merged token.
        window_size: a window's side in pixels.
        patch_size: a patch's side in pixels.

    Returns:
        `window_index` [P / merge²] int64 and `cu_window_seqlens` [W + 1] int32, in patches, without empty windows.

    Source: transformers.vision_utils.get_vision_window_index.
    """
    side = window_size // merge // patch_size
    orders: list[Ints] = []
    lengths: list[Ints] = []
    offset = 0
    for frames, rows, columns in grid_thw.tolist():
        order, tokens_W = _windows(frames, rows // merge, columns // merge, side)
        orders.append(order + offset)
        lengths.append(tokens_W * merge**2)
        offset += len(order)
    return np.concatenate(orders), _ends(np.concatenate(lengths))


def _windows(frames: int, rows: int, columns: int, side: int) -> tuple[Ints, Ints]:
    """Merged tokens of one picture or clip in window order, and how many each non-empty window has."""
    frame, row, column = np.indices((frames, rows, columns), dtype=np.int64).reshape(3, -1)
    across = -(-columns // side)
    down = -(-rows // side)
    window = (frame * down + row // side) * across + column // side
    return np.argsort(window, kind="stable"), np.bincount(window)


def attention_seqlens(grid_thw: NDArray[np.integer]) -> NDArray[np.int32]:
    """`cu_seqlens` [segments + 1] int32, in patches: every frame attends within itself.

    Source: transformers.vision_utils.get_vision_cu_seqlens.
    """
    grid = np.asarray(grid_thw, dtype=np.int64)
    return _ends(np.repeat(grid[:, 1] * grid[:, 2], grid[:, 0]))


def _ends(lengths: Ints) -> NDArray[np.int32]:
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)


TORCH_LANES = 8
"""float32 numbers in a vector of torch's CPU kernels."""


def bucket_boundaries(patches_per_side: int) -> NDArray[np.float32]:
    """`torch.arange(1 / n, 1.0, 1 / n)` bit for bit, as torch computes it on x86.

    A patch of a full-size picture lies exactly on a boundary, so the last bit decides its bucket. Torch rounds the
    first number of each vector to float32 and adds the rest to that, as long as two whole vectors remain
    (aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp).
    """
    step = 1 / patches_per_side
    size = max(int(np.ceil((1.0 - step) / step)), 0)
    exact = step + step * np.arange(size)
    vectors = exact[: size - size % (2 * TORCH_LANES)].reshape(-1, TORCH_LANES)
    bases = vectors[:, :1].astype(np.float32).astype(np.float64)
    return np.concatenate([(bases + step * np.arange(TORCH_LANES)).ravel(), exact[vectors.size :]]).astype(np.float32)
