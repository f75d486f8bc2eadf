"""Host-side code between the modules: merging features into embeddings, and what encoders are fed."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime.family_code import FAMILY_CODE, merge, tiles

FACTS = {"patch_size": 4, "patches_per_side": 2, "spatial_merge_size": 2}
EMBEDS = np.zeros((4, 2), np.float32)


def test_features_take_the_places_of_the_placeholders_in_order() -> None:
    merged = merge(EMBEDS, np.array([9, 4, 9, 4]), np.array([[[1, 2]], [[3, 4]]], np.float32), placeholder=4)
    assert merged.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert not EMBEDS.any()


@pytest.mark.parametrize("features", [0, 1, 3])
def test_counts_that_differ_are_both_named(features: int) -> None:
    with pytest.raises(
        InputError, match=f"the prompt holds 2 picture placeholders where the pictures give {features} features?:"
    ):
        merge(EMBEDS, np.array([9, 4, 9, 4]), np.ones((features, 2), np.float32), placeholder=4)


def test_whole_zero_tiles_are_padding_and_left_out() -> None:
    pixels = np.ones((1, 3, 3, 8, 8), np.float32)
    pixels[0, 1] = 0
    found = tiles({"pixel_values": pixels}, FACTS)
    assert found["pixel_values"].shape == (2, 3, 8, 8)
    assert found["position_ids"].shape == (2, 4)


def test_a_black_picture_alone_is_a_picture() -> None:
    assert tiles({"pixel_values": np.zeros((1, 1, 3, 8, 8), np.float32)}, FACTS)["pixel_values"].shape == (1, 3, 8, 8)


def test_a_tile_that_is_partly_padding_is_refused() -> None:
    mask = np.ones((1, 1, 8, 8), np.int64)
    mask[..., 6:] = 0
    with pytest.raises(InputError, match="padded inside its tile"):
        tiles({"pixel_values": np.ones((1, 1, 3, 8, 8), np.float32), "pixel_attention_mask": mask}, FACTS)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8), (2, 1, 8, 8), (1, 64)])
def test_a_mask_of_another_shape_than_the_tiles_is_refused(shape: tuple[int, ...]) -> None:
    pixels = np.ones((1, 2, 3, 8, 8), np.float32)
    with pytest.raises(InputError, match="pixel_attention_mask has shape"):
        tiles({"pixel_values": pixels, "pixel_attention_mask": np.ones(shape, np.int64)}, FACTS)


@pytest.mark.parametrize("family", FAMILY_CODE)
@pytest.mark.parametrize(("shape", "dtype"), [((), "f4"), ((8,), "f4"), ((8, 8, 8), "f4"), ((1,) * 6, "f4"),
                                              ((1, 3, 8, 8), "f8"), ((1, 3, 8, 8), "i8")])  # fmt: skip
def test_pixels_of_another_rank_or_type_are_refused(family: str, shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(InputError, match="pixel_values are .* of shape .* where float32 with"):
        FAMILY_CODE[family].encoder_inputs({"pixel_values": np.ones(shape, dtype)}, FACTS)


@pytest.mark.parametrize(
    "grid", [None, [1, 2, 4], [[2, 4]], [[1, 2, 3]], [[1, 8, 1]], [[-1, -2, 4]], [[1.0, 2.0, 4.0]]]
)
def test_a_grid_that_does_not_describe_the_patches_is_refused(grid: object) -> None:
    tensors = {"pixel_values": np.ones((8, 4), np.float32)} | ({} if grid is None else {"image_grid_thw": grid})
    with pytest.raises(InputError, match="does not describe the 8 patches"):
        FAMILY_CODE["qwen2_5_vl"].encoder_inputs(tensors, FACTS)
