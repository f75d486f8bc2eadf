"""Experts in a loop are computed at once where that gives the same, and only inside the block."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from transformers.models.step3p7.modeling_step3p7 import Step3p7Experts

from msao_compile.graph.experts import at_once

CONFIG = SimpleNamespace(num_local_experts=4, hidden_size=6, moe_intermediate_size=3, hidden_act="silu")


class _Doubled(Step3p7Experts):
    """Does something that the product of all experts does not."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        answer: torch.Tensor = 2 * super().forward(hidden_states, top_k_index, top_k_weights)
        return answer


def test_a_loop_over_experts_becomes_one_product() -> None:
    chance = torch.Generator().manual_seed(0)
    experts = Step3p7Experts(CONFIG, swiglu_limit=0.4)
    for value in experts.parameters():
        nn.init.normal_(value, generator=chance)
    given = torch.rand(5, 6, generator=chance), torch.tensor([[0, 3]] * 5), torch.rand(5, 2, generator=chance)
    with torch.no_grad():
        wanted = experts(*given)
        with at_once(experts):
            program = torch.export.export(experts, given, dynamic_shapes=({0: torch.export.Dim("tokens")},) * 3)
            torch.testing.assert_close(experts(*given), wanted)
        torch.testing.assert_close(program.module()(*given), wanted)
    assert "forward" not in vars(experts) and not hasattr(experts, "has_gate")


def test_experts_that_do_something_else_stay_as_they_are() -> None:
    experts = _Doubled(CONFIG)
    with at_once(experts):
        assert "forward" not in vars(experts)
