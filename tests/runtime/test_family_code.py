"""Host-side code between the modules: merging features into embeddings, and what encoders are fed."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime.family_code import merge, tiles

FACTS = {"patch_size": 4, "patches_per_side": 2}
EMBEDS = np.zeros((4, 2), np.float32)


def test_features_take_the_places_of_the_placeholders_in_order() -> None:
    merged = merge(EMBEDS, np.array([9, 4, 9, 4]), np.array([[[1, 2]], [[3, 4]]], np.float32), placeholder=4)
    assert merged.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert not EMBEDS.any()


@pytest.mark.parametrize("features", [0, 1, 3])
def test_counts_that_differ_are_both_named(features: int) -> None:
    with pytest.raises(
        InputError, match=f"the prompt holds 2 picture placeholders where the pictures give {features} features"
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
