"""What an argument of a host call is made of: an input of the request, or one of the ways that the runtime knows."""

from __future__ import annotations

import pytest
import torch

from msao_compile.families.host_calls import _source, longer
from msao_compile.manifest.schema import HostCall

MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]])
GIVEN = {"image_grid_thw": torch.tensor([[1, 2, 3]]), "input_features_mask": MASK}


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ([[1, 2, 3]], "image_grid_thw"),
        ([[1, 4, 6]], "image_grid_thw:times 1 2 2"),
        ([[1, 4, 7]], None),
        ([5, 2], "input_features_mask:lengths"),
        ([3, 2, 2, 0], "input_features_mask:lengths 3"),
        ([3, 2, 2, 1], None),
        ([2, 2, 1, 2, 0, 0], "input_features_mask:lengths 2"),
    ],
)
def test_an_argument_is_known_by_its_numbers(value: list[object], source: str | None) -> None:
    assert _source(torch.tensor(value), GIVEN) == source


def test_axes_that_larger_grids_lengthen_are_known_from_small_ones() -> None:
    """Both pictures have one window; larger ones have more."""
    settings = {"spatial_merge_size": 2, "window_size": 128, "patch_size": 8}
    call = HostCall(
        function="vision_window_index",
        settings=settings,
        inputs={"grid_thw": "image_grid_thw"},
        outputs=("index", "ends"),
    )
    cells = HostCall(
        function="vision_cu_seqlens", settings={}, inputs={"grid_thw": "image_grid_thw"}, outputs=("segments",)
    )
    for grid in ([[1, 4, 6]], [[1, 6, 4]]):
        found = longer([call, cells], {"image_grid_thw": torch.tensor(grid), "pixel_values": torch.zeros(24, 9)})
        assert found == {"index": {0}, "ends": {0}, "segments": set()}
