"""Gathered and weighted rows equal transformers' `pack_image_features`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.granite4_vision import modeling_granite4_vision as granite4_vision
from transformers.models.llava_next import modeling_llava_next as llava_next
from transformers.models.llava_next_video import modeling_llava_next_video as llava_next_video
from transformers.models.llava_onevision import modeling_llava_onevision as llava_onevision

from msao_compile.runtime.host import anyres

TILE, PATCH, HIDDEN = 56, 14, 5
SIDE = TILE // PATCH
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
MANY = [[TILE * down, TILE * across] for down in range(1, 7) for across in range(1, 7)]
SIZES = [[56, 56], [100, 40], [31, 200], [112, 112], [113, 111], [640, 480], [17, 333], [1000, 999], [300, 900], [1, 9]]
MODELS = [
    (llava_next, "LlavaNextModel"),
    (llava_next_video, "LlavaNextVideoModel"),
    (llava_onevision, "LlavaOnevisionModel"),
    (granite4_vision, "Granite4VisionModel"),
]


def pack(module: Any, name: str, pinpoints: Any, features: torch.Tensor, size: list[int], newline: Any) -> torch.Tensor:
    """`pack_image_features` of one picture whose tiles' features are [tiles, side², hidden]."""
    vision_config = SimpleNamespace(image_size=TILE, patch_size=PATCH)
    config = SimpleNamespace(vision_config=vision_config, image_grid_pinpoints=pinpoints)
    self = SimpleNamespace(config=config, layerwise_projectors=None)
    if module is granite4_vision:
        self.layerwise_projectors, self.downsample_rate = [], "1/2"
    strategy = {} if module is llava_onevision else {"vision_feature_select_strategy": "full"}
    method = getattr(module, name).pack_image_features
    packed = method(self, [features], torch.tensor([size]), image_newline=newline, **strategy)
    return packed[0] if module is granite4_vision else packed[0][0]


def compare(module: Any, name: str, pinpoints: Any, size: list[int], newline: bool = True, tiled: bool = True) -> int:
    """Checks one picture and returns how many tokens it has."""
    side = SIDE // 2 if module is granite4_vision else SIDE
    tiles = anyres.anyres_tiles(size, pinpoints, TILE) if tiled else 1
    rng = np.random.default_rng(7)
    features = rng.standard_normal((tiles, side * side, HIDDEN)).astype(np.float32)
    line = rng.standard_normal(HIDDEN).astype(np.float32)
    reference = pack(
        module, name, pinpoints, torch.from_numpy(features), size, torch.from_numpy(line) if newline else None
    )
    patches = 9 if module is llava_onevision else None
    taps, weights = anyres.anyres_index(size, pinpoints, TILE, side, patches, newline, tiled)
    rows = np.concatenate([features.reshape(-1, HIDDEN), line[None]])
    ours = (weights[..., None] * rows[taps]).sum(axis=1)
    assert taps.dtype == np.int64 and weights.dtype == np.float32
    assert taps.shape == weights.shape == (len(reference), 1 if patches is None else 4)
    np.testing.assert_allclose(ours, reference.numpy(), rtol=0, atol=2e-6)
    return len(reference)


@pytest.mark.parametrize(("module", "name"), MODELS)
@pytest.mark.parametrize("pinpoints", [PINPOINTS, MANY])
@pytest.mark.parametrize("size", SIZES)
def test_packed_tiles_equal_transformers(module: Any, name: str, pinpoints: Any, size: list[int]) -> None:
    compare(module, name, pinpoints, size)


@pytest.mark.parametrize(("module", "name"), MODELS)
@pytest.mark.parametrize("size", SIZES)
def test_packed_tiles_without_newline_equal_transformers(module: Any, name: str, size: list[int]) -> None:
    compare(module, name, PINPOINTS, size, newline=False)


@pytest.mark.parametrize(("module", "name"), MODELS)
@pytest.mark.parametrize("newline", [False, True])
def test_a_thumbnail_alone_equals_transformers(module: Any, name: str, newline: bool) -> None:
    assert compare(module, name, PINPOINTS, [100, 40], newline, tiled=False) > 0


def test_a_large_picture_is_shrunk_by_onevision_alone() -> None:
    full = compare(llava_next, "LlavaNextModel", MANY, [1000, 999])
    shrunk = compare(llava_onevision, "LlavaOnevisionModel", MANY, [1000, 999])
    assert shrunk < full


def test_a_picture_a_little_too_large_is_left_as_it_is() -> None:
    tiles = [[2 * TILE, 5 * TILE]]
    full = compare(llava_next, "LlavaNextModel", tiles, [200, 500])
    assert compare(llava_onevision, "LlavaOnevisionModel", tiles, [200, 500]) == full


@pytest.mark.parametrize("module", [module for module, _ in MODELS])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pinpoints", [PINPOINTS, MANY, [[60, 130], [200, 59]]])
def test_tile_counts_equal_transformers(module: Any, pinpoints: Any, size: list[int]) -> None:
    assert anyres.anyres_tiles(size, pinpoints, TILE) == module.image_size_to_num_patches(size, pinpoints, TILE)
