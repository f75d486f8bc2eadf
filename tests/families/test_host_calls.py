"""What an argument of a host call is made of: an input of the request, or one of the ways that the runtime knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.host_calls import _source, refuse_alike
from msao_compile.manifest.schema import HostCall
from msao_compile.runtime.encoding import host_inputs

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


WINDOWS = HostCall(
    function="vision_window_index",
    settings={"spatial_merge_size": 2, "window_size": 128, "patch_size": 8},
    inputs={"grid_thw": "image_grid_thw"},
    outputs=("index", "ends"),
)
SEGMENTS = HostCall(
    function="vision_cu_seqlens", settings={}, inputs={"grid_thw": "image_grid_thw"}, outputs=("segments",)
)


def example(*grid: int) -> dict[str, torch.Tensor]:
    given = {"image_grid_thw": np.array([grid])}
    made = host_inputs((WINDOWS, SEGMENTS), given)
    return {name: torch.from_numpy(value) for name, value in {**given, **made}.items()}


def test_two_pictures_of_one_window_each_are_too_small() -> None:
    """A trace of them would take the number of windows for a constant."""
    with pytest.raises(UnsupportedFamily, match=r"vision_window_index gives \[2\] for both .* window_size 128"):
        refuse_alike("F", [WINDOWS, SEGMENTS], [example(1, 4, 6), example(1, 12, 4)])
    refuse_alike("F", [WINDOWS, SEGMENTS], [example(1, 4, 6), example(1, 20, 4)])
