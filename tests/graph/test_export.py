"""What cannot be one graph is refused in a sentence."""

from __future__ import annotations

import pytest
import torch

from msao_compile.errors import StageError
from msao_compile.graph.export import _refuse_chance
from msao_compile.graph.whole import trace

from .small import graph


def test_a_branch_on_a_length_is_told_with_its_condition() -> None:
    def body(_: object, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        given = inputs["x"]
        return given + 1 if given.shape[0] % 3 == 0 else given - 1

    rows = {"x": {0: torch.export.Dim("rows")}}
    with pytest.raises(StageError, match="another way where a length does not satisfy .* % 3.* and one graph has one"):
        trace(body, {}, {"x": torch.zeros(9)}, rows, "portable")


def test_a_graph_that_draws_random_numbers_is_refused() -> None:
    drawn = graph("g (float[n,8] x) => (float[n,8] y) { noise = RandomNormalLike(x) y = Add(x, noise) }")
    with pytest.raises(StageError, match=r"draws random numbers \(RandomNormalLike\)"):
        _refuse_chance(drawn.graph)
    _refuse_chance(graph("g (float[n,8] x) => (float[n,8] y) { y = Neg(x) }").graph)
