"""Units lie where the preprocessor put them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from msao_compile.runtime.mas.layout import Tile, frame_grids, picture_tiles, seconds
from msao_compile.runtime.preprocess import from_config
from msao_compile.runtime.preprocess.prepared import Preprocessor

SEQUENCE = {"image_seq_len": 9}


def tiled(splits: bool) -> Preprocessor:
    config = {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 216},
              "max_image_size": {"longest_edge": 72}, "do_image_splitting": splits}  # fmt: skip
    return from_config(config, SEQUENCE)


def packed() -> Preprocessor:
    return from_config({"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 4, "max_pixels": 10**6}, {})


@pytest.mark.parametrize("splits", [True, False])
def test_tiles_are_those_that_the_preprocessor_cuts(splits: bool) -> None:
    pictures = [Image.new("RGB", size) for size in ((300, 100), (80, 80), (180, 290))]
    preprocessor = tiled(splits)
    prepared = preprocessor(pictures)
    count = prepared.tensors["pixel_values"].shape[1]
    found = picture_tiles(preprocessor, [picture.size for picture in pictures], prepared.tensors, 9 * count)
    assert found is not None and len(found) == count
    per_picture = [sum(tile.picture == index for tile in found) for index in range(3)]
    assert per_picture == [text.count("<image>") // 9 for text in prepared.expansions]
    for index in range(3):
        own = [tile for tile in found if tile.picture == index]
        assert own[-1].box == (0, 0, 1, 1)
        first_row = [tile for tile in own[:-1] if tile.box[1] == 0]
        assert len(first_row) == prepared.expansions[index].count("<row_1_col_")
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in (tile.box for tile in own[:-1]))
        assert area == pytest.approx(1) if len(own) > 1 else own[-1].grid == (3, 3)


def test_packed_patches_have_the_grid_that_comes_with_them() -> None:
    pictures = [Image.new("RGB", size) for size in ((112, 56), (56, 168))]
    preprocessor = packed()
    prepared = preprocessor(pictures)
    units = sum(text.count("<|image_pad|>") for text in prepared.expansions)
    found = picture_tiles(preprocessor, [picture.size for picture in pictures], prepared.tensors, units)
    assert found == (Tile(2, 4, 0), Tile(6, 2, 1))


def test_a_plain_encoder_has_square_grids_and_one_with_a_class_token_has_none() -> None:
    plain = from_config({"image_processor_type": "CLIPImageProcessor"}, {})
    assert picture_tiles(plain, [(9, 9), (9, 9)], {}, 72) == (Tile(6, 6, 0), Tile(6, 6, 1))
    assert picture_tiles(plain, [(9, 9), (9, 9)], {}, 74) is None
    assert picture_tiles(tiled(False), [(9, 9)], {}, 10) is None


def test_kept_cells_cover_their_part_of_the_picture() -> None:
    kept = np.array([[True, True, False], [False, False, False], [True, False, True]])
    assert Tile(3, 3, 0, (0.5, 0.0, 1.0, 0.6)).boxes(kept) == [
        pytest.approx((0.5, 0.0, 0.5 + 1 / 3, 0.2)),
        pytest.approx((0.5, 0.4, 0.5 + 1 / 6, 0.6)),
        pytest.approx((0.5 + 1 / 3, 0.4, 1.0, 0.6)),
    ]


def test_every_frame_of_a_clip_has_its_grid() -> None:
    assert frame_grids(np.array([[2, 4, 6], [1, 8, 2]]), 16) == [(2, 3), (2, 3), (4, 1)]
    assert frame_grids(np.array([[2, 4, 6]]), 17) is None and frame_grids(np.array([[2, 4, 6]]), 0) is None


def test_padding_is_no_part_of_a_sound() -> None:
    sound = {"input_features": np.zeros((1, 80, 3000)), "feature_attention_mask": np.ones((1, 250))}
    assert seconds(sound) == pytest.approx(2.5)
    assert seconds({"input_features": np.zeros((1, 80, 3000))}) == pytest.approx(30)
