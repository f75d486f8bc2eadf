"""What cannot be one graph is refused in a sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msao_compile.errors import StageError
from msao_compile.graph.export import _dynamic, _limits, _refuse_chance
from msao_compile.graph.whole import Seen, trace

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


def test_the_ends_of_tables_are_read_from_what_torch_says() -> None:
    said = RuntimeError(
        "Constraints violated (past_sequence_length, sequence_length)!\nSuggested fixes:\n"
        "  sequence_length = Dim('sequence_length', max=510)\n"
        "  past_sequence_length = Dim('past_sequence_length', min=2, max=509)"
    )
    shortened = StageError("it goes another way where a length does not satisfy it")
    shortened.__cause__ = said
    assert _limits(shortened) == {"sequence_length": {"max": 510}, "past_sequence_length": {"min": 2, "max": 509}}
    assert _limits(StageError("something else")) == {}


def test_tables_that_end_bound_the_new_positions_and_the_past() -> None:
    subject: Any = SimpleNamespace(names={"input_ids": ("batch_size", "sequence_length")}, tokens="input_ids")
    state: Any = SimpleNamespace(axis=2)
    examples = tuple({"input_ids": torch.zeros(2 + more, 7 + more)} for more in (0, 1))
    limits = {"sequence_length": {"max": 510}, "past_sequence_length": {"max": 509}}
    found = _dynamic(subject, Seen(states={"past_key_values.0.key": state}), examples, limits)  # type: ignore[arg-type]
    assert (found["input_ids"][1].max, found["past_key_values.0.key"][2].max) == (510, 509)
