"""A decoder's state holds what its layers keep of their own tokens, and only that; what has no place in it is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msao_compile.errors import StageError, UnsupportedFamily
from msao_compile.graph.state import States
from msao_compile.graph.whole import Call, Subject, _refuse_longer, trace


@pytest.mark.parametrize(
    "given", [None, {f"past_key_values.0.{kind}": torch.zeros(1, 2, 4, 3) for kind in ("key", "value")}]
)
def test_a_layer_that_also_attends_to_an_encoder_keeps_its_own_keys(given: dict[str, torch.Tensor] | None) -> None:
    states = States(1, 4, 5, given)
    own, other = torch.rand(1, 2, 5, 3), torch.rand(2, 2, 5, 3)  # as many pictures' places as there are tokens
    states.update(own, own, 0)
    kept = dict(states.left)
    key, value = states.update(other, other, 0)
    assert key is other and value is other
    assert states.left == kept
    assert kept["past_key_values.0.key"].shape[2] == (5 if given is None else 9)


def test_what_stands_before_the_tokens_is_refused() -> None:
    tokens = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}
    subject = Subject(nn.Module(), (tokens, tokens), {}, "input_ids", ("logits",))
    _refuse_longer(subject, tokens, [Call((torch.zeros(1, 8, 4),), {}, True, None)])
    with pytest.raises(UnsupportedFamily, match="decodes 25 positions for 8 tokens"):
        _refuse_longer(subject, tokens, [Call((torch.zeros(1, 25, 4),), {}, True, None)])


def test_what_torch_cannot_trace_is_a_fault_of_the_stage() -> None:
    def body(_: object, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return inputs["no"]

    with pytest.raises(StageError, match="could not export"):
        trace(body, {}, {"x": torch.zeros(2)}, {}, "portable")


def test_keys_chosen_by_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedFamily, match="layer 1 attends to blocks of keys that it chooses"):
        States(2, 0, 3).layers[1].update_index(torch.zeros(1, 1, 3, 4))


def test_what_depends_on_numbers_of_a_request_is_said_to() -> None:
    def body(_: object, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return inputs["x"] if inputs["x"].sum() > 0 else -inputs["x"]

    with pytest.raises(StageError, match="depends on numbers of a request and not on its lengths alone"):
        trace(body, {}, {"x": torch.zeros(2)}, {}, "portable")
