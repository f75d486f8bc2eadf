"""NumPy functions of vision towers equal transformers' own, dtypes included."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import vision_utils
from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeVariableResolutionResamplerModel as ErnieResampler,
)
from transformers.models.kimi_k25 import modeling_kimi_k25
from transformers.models.muse_glimmer import modeling_muse_glimmer
from transformers.models.muse_spark import modeling_muse_spark

from msao_compile.runtime.host import FUNCTIONS, vision

GRIDS = [
    [[1, 4, 6]],
    [[1, 2, 2]],
    [[1, 10, 26], [1, 34, 8]],
    [[3, 6, 18], [1, 16, 16], [2, 8, 8]],
    [[1, 74, 54], [5, 2, 40]],
    [[1, 2, 130], [1, 98, 98]],
]
ODD_GRIDS = [[[1, 1, 1]], [[1, 3, 7], [2, 5, 1]], [[4, 27, 13]], [[1, 31, 32], [1, 63, 65]]]


def same(ours: tuple[np.ndarray, ...], theirs: Any) -> None:
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    assert len(ours) == len(theirs)
    for array, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


def both(grids: Any) -> tuple[np.ndarray, torch.Tensor]:
    return np.array(grids, dtype=np.int64), torch.tensor(grids)


@pytest.mark.parametrize("grids", GRIDS + ODD_GRIDS)
@pytest.mark.parametrize("merge_temporal", [False, True])
def test_segments_equal_vision_utils(grids: Any, merge_temporal: bool) -> None:
    array, tensor = both(grids)
    reference = vision_utils.get_vision_cu_seqlens(tensor, merge_temporal)
    same(vision.vision_cu_seqlens(array, merge_temporal), reference)
    same(vision.vision_attention_seqlens(array, merge_temporal), reference)


@pytest.mark.parametrize(("grids", "merge"), [(g, m) for g in GRIDS for m in (1, 2)] + [(g, 1) for g in ODD_GRIDS])
@pytest.mark.parametrize("include_temporal", [False, True])
def test_positions_equal_vision_utils(grids: Any, merge: int, include_temporal: bool) -> None:
    array, tensor = both(grids)
    reference = vision_utils.get_vision_position_ids(tensor, merge, include_temporal)
    same(vision.vision_position_ids(array, merge, include_temporal), reference)


def test_each_picture_may_have_its_own_merge_size() -> None:
    array, tensor = both([[1, 8, 12], [2, 4, 4], [1, 3, 5]])
    merges = [4, 2, 1]
    reference = vision_utils.get_vision_position_ids(tensor, torch.tensor(merges))
    same(vision.vision_position_ids(array, np.array(merges)), reference)


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize(("merge", "window", "patch"), [(2, 112, 14), (2, 64, 16), (1, 70, 14), (2, 28, 14)])
def test_windows_equal_vision_utils(grids: Any, merge: int, window: int, patch: int) -> None:
    array, tensor = both(grids)
    reference = vision_utils.get_vision_window_index(tensor, merge, window, patch)
    same(vision.vision_window_index(array, merge, window, patch), reference)


@pytest.mark.parametrize(("grids", "merge"), [(g, m) for g in GRIDS for m in (1, 2)] + [(g, 1) for g in ODD_GRIDS])
@pytest.mark.parametrize("side", [8, 27, 48])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_interpolation_equals_vision_utils_bit_for_bit(
    grids: Any, merge: int, side: int, mode: str, align_corners: bool, padding: str
) -> None:
    array, tensor = both(grids)
    settings = (side, mode, align_corners, merge, padding)
    reference = vision_utils.get_vision_interpolation_indices_and_weights(tensor, *settings)
    same(vision.vision_interpolation_indices_and_weights(array, *settings), reference)


def test_the_deprecated_bilinear_form_is_the_transpose() -> None:
    array, tensor = both(GRIDS[3])
    reference = vision_utils.get_vision_bilinear_indices_and_weights(tensor, 24, 2)
    same(vision.vision_bilinear_indices_and_weights(array, 24, 2), reference)


def test_an_unknown_interpolation_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest"):
        vision.vision_interpolation_indices_and_weights(np.array([[1, 2, 2]]), 8, mode="nearest")


@pytest.mark.parametrize("side", [7, 16, 24, 27, 32, 48, 70])
def test_nearest_positions_equal_vision_utils(side: int) -> None:
    sizes = [[height, width] for height in range(1, 75, 3) for width in (1, 2, side, 33, 70)]
    array, tensor = both(sizes)
    same(vision.vision_nearest_position_ids(array, side), vision_utils.get_vision_nearest_position_ids(tensor, side))


def test_merged_shape_equals_vision_utils() -> None:
    array, tensor = both([[9, 14], [9, 14]])
    ours = vision.vision_merged_shape(array, (2, 4))
    assert tuple(int(size) for size in ours) == vision_utils.get_vision_merged_shape(tensor, (2, 4))


@pytest.mark.parametrize("grids", GRIDS + ODD_GRIDS)
def test_frame_index_equals_kimi(grids: Any) -> None:
    array, tensor = both(grids)
    same(vision.vision_frame_index(array), modeling_kimi_k25.get_vision_frame_index(tensor))


@pytest.mark.parametrize("grids", [GRIDS[0], GRIDS[2], [[3, 4, 6], [3, 8, 2]]])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (2, 1)])
def test_temporal_merge_equals_kimi(grids: Any, kernel: tuple[int, int]) -> None:
    array, tensor = both(grids)
    reference = modeling_kimi_k25.get_vision_temporal_merge_index(tensor, *kernel)
    same(vision.vision_temporal_merge_index(array, *kernel), reference)


@pytest.mark.parametrize("model", [modeling_muse_glimmer, modeling_muse_spark])
@pytest.mark.parametrize("grids", GRIDS)
def test_pixel_shuffle_equals_muse(model: Any, grids: Any) -> None:
    array, tensor = both(grids)
    same(vision.vision_pixel_shuffle_index(array, 2), model.get_vision_pixel_shuffle_index(tensor, 2))


@pytest.mark.parametrize("grids", GRIDS)
def test_frame_pairs_equal_ernie(grids: Any) -> None:
    array, tensor = both(grids)
    tokens = torch.arange(int(tensor.prod(-1).sum()) // 4)[:, None]
    theirs = ErnieResampler._temporal_slicing(SimpleNamespace(spatial_merge_size=2), tokens, tensor)
    same(vision.vision_frame_pairs(array, 2), theirs.unbind(1))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if hasattr(vision_utils, f"get_{name}")])
def test_vision_functions_take_what_transformers_ones_take(name: str) -> None:
    theirs = inspect.signature(getattr(vision_utils, f"get_{name}")).parameters
    ours = inspect.signature(FUNCTIONS[name]).parameters
    assert {key: value.default for key, value in ours.items()} == {
        key: value.default for key, value in theirs.items() if key not in ("kwargs", "config")
    }


def test_every_registered_function_has_the_name_it_is_found_by() -> None:
    assert [function.__name__ for function in FUNCTIONS.values()] == list(FUNCTIONS)
