"""Host-side positions equal what transformers' models compute inside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import vision_utils
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from msao_compile.errors import PromptError
from msao_compile.runtime import positions

IMAGE, VIDEO = 91, 92
GRIDS = [
    [[1, 4, 6]],
    [[1, 2, 2]],
    [[1, 10, 26], [1, 34, 8]],
    [[3, 6, 18], [1, 16, 16], [2, 8, 8]],
    [[1, 74, 54], [5, 2, 40]],
]


def prompt(spans: list[tuple[int, int]]) -> np.ndarray:
    """Tokens as (token, how many) runs."""
    return np.concatenate([np.full(count, token, dtype=np.int64) for token, count in spans])


def rope_index(model: type, ids: np.ndarray, images: Any, videos: Any, seconds: list[float] | None) -> Any:
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
    self = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    self.get_vision_position_ids = lambda *args, **kwargs: model.get_vision_position_ids(self, *args, **kwargs)  # type: ignore[attr-defined]
    types = torch.from_numpy(np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0)))[None]
    extra = {} if seconds is None else {"second_per_grid_ts": torch.tensor(seconds)}
    grids = {"image_grid_thw": images, "video_grid_thw": videos}
    grids = {name: None if grid is None else torch.tensor(grid) for name, grid in grids.items()}
    return model.get_rope_index(self, torch.from_numpy(ids)[None], types, **grids, **extra)  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", [Qwen2VLModel, Qwen2_5_VLModel])
@pytest.mark.parametrize("grids", GRIDS)
def test_mrope_positions_of_images_equal_get_rope_index(model: type, grids: list[list[int]]) -> None:
    spans = [(5, 7)]
    for frames, rows, columns in grids:
        spans += [(IMAGE, frames * rows * columns // 4), (6, 3)]
    ids = prompt(spans)
    reference, delta = rope_index(model, ids, grids, None, None)
    ours = positions.mrope_positions(ids, IMAGE, VIDEO, np.array(grids), 2)
    assert ours[0].tolist() == reference[:, 0].tolist() and ours[1] == delta.item()


def test_mrope_positions_of_mixed_clips_and_images_equal_get_rope_index() -> None:
    images, clips, seconds = [[1, 4, 6], [1, 8, 2]], [[4, 6, 4], [3, 2, 8]], [0.7, 1.15]
    ids = prompt([(VIDEO, 24), (5, 2), (IMAGE, 6), (5, 1), (IMAGE, 4), (5, 4), (VIDEO, 12)])
    reference, delta = rope_index(Qwen2_5_VLModel, ids, images, clips, seconds)
    videos = positions.VideoGrids(np.array(clips), tuple(4 * second for second in seconds))
    ours = positions.mrope_positions(ids, IMAGE, VIDEO, np.array(images), 2, videos)
    assert ours[0].tolist() == reference[:, 0].tolist() and ours[1] == delta.item()


def test_mrope_positions_of_text_count_up_with_no_delta() -> None:
    position_ids, delta = positions.mrope_positions(np.array([3, 1, 2]), IMAGE, VIDEO, None, 2)
    assert position_ids.tolist() == [[0, 1, 2]] * 3 and delta == 0


def test_neighbouring_pictures_each_get_their_own_grid() -> None:
    grids = np.array([[1, 2, 4], [1, 4, 2]])
    position_ids, _ = positions.mrope_positions(prompt([(IMAGE, 4)]), IMAGE, VIDEO, grids, 2)
    assert position_ids.tolist() == [[0, 0, 2, 2], [0, 0, 2, 3], [0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("count", "grids", "message"),
    [
        (5, [[1, 4, 6]], "has 5 tokens 91 at 0 where its picture or clip takes 6"),
        (7, [[1, 4, 6]], "tokens 91 at 6 for a picture or clip that was not given"),
        (6, [[1, 4, 6], [1, 2, 2]], "no tokens for 1 of its pictures"),
    ],
)
def test_image_tokens_that_do_not_match_the_grids_are_refused(count: int, grids: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        positions.mrope_positions(prompt([(IMAGE, count), (5, 1)]), IMAGE, VIDEO, np.array(grids), 2)


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("merge", [1, 2])
def test_vision_positions_equal_vision_utils(grids: list[list[int]], merge: int) -> None:
    reference = vision_utils.get_vision_position_ids(torch.tensor(grids), merge)
    assert positions.vision_position_ids(np.array(grids), merge).tolist() == reference.tolist()


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize(("window", "patch"), [(112, 14), (56, 14), (28, 14), (64, 8)])
def test_windows_equal_vision_utils(grids: list[list[int]], window: int, patch: int) -> None:
    index, ends = vision_utils.get_vision_window_index(torch.tensor(grids), 2, window, patch)
    our_index, our_ends = positions.window_index(np.array(grids), 2, window, patch)
    assert our_index.tolist() == index.tolist() and our_ends.tolist() == ends.tolist()
    assert (our_index.dtype, our_ends.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("grids", GRIDS)
def test_attention_seqlens_equal_vision_utils(grids: list[list[int]]) -> None:
    reference = vision_utils.get_vision_cu_seqlens(torch.tensor(grids))
    assert positions.attention_seqlens(np.array(grids)).tolist() == reference.tolist()
    assert positions.attention_seqlens(np.array(grids)).dtype == np.int32


def test_bucket_boundaries_equal_torch_bit_for_bit() -> None:
    for side in range(1, 200):
        reference = torch.arange(1 / side, 1.0, 1 / side).numpy()
        assert np.array_equal(positions.bucket_boundaries(side), reference), side
