"""What an argument of a host call is made of: an input of the request, or one of the ways that the runtime knows."""

from __future__ import annotations

import pytest
import torch

from msao_compile.families.host_calls import _source

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
