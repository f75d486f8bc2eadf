"""Which axes of a request's tensors lie over its tokens."""

from __future__ import annotations

import pytest
import torch

from msao_compile.families.subject import _over_tokens


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        (((1, 7, 2), (1, 9, 3)), ("", "sequence_length", "")),
        (((1, 7, 7), (1, 9, 7)), ("", "sequence_length", "")),  # the last is as long by chance
        (((7, 7), (7, 7)), ("", "")),
    ],
)
def test_an_axis_as_long_as_the_tokens_in_every_example_lies_over_them(
    shapes: tuple[tuple[int, ...], ...], axes: tuple[str, ...]
) -> None:
    tokens = (7, 9)
    examples = [
        {"input_ids": torch.zeros(1, count), "mask": torch.zeros(shape)}
        for count, shape in zip(tokens, shapes, strict=True)
    ]
    assert _over_tokens("mask", "input_ids", examples) == axes


def test_tokens_of_one_length_tell_nothing() -> None:
    examples = [{"input_ids": torch.zeros(1, 7), "mask": torch.zeros(1, 7)}] * 2
    assert _over_tokens("mask", "input_ids", examples) == ("", "")
    assert _over_tokens("mask", None, examples) == ()
