"""Attention as the graphs compute it, beside what a modeling file computes itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.inkling2.modeling_inkling2 import eager_attention_forward

from msao_compile.errors import StageError
from msao_compile.graph.attend import MASKED, Setting


def test_a_sink_of_each_query_takes_its_part() -> None:
    chance = torch.Generator().manual_seed(0)
    query, bias = torch.rand(2, 4, 3, 8, generator=chance), torch.rand(2, 4, 3, 5, generator=chance)
    key, value = (torch.rand(2, 2, 5, 8, generator=chance) for _ in range(2))
    layer = nn.Identity().eval()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    more = {"scaling": 0.3, "position_bias": bias, "sinks": torch.rand(2, 4, 3, 1, generator=chance)}
    wanted, _ = eager_attention_forward(layer, query, key, value, None, **more)
    for dialect in ("portable", "fused"):
        found, _ = Setting(dialect).attention(layer, query, key, value, None, **more)
        torch.testing.assert_close(found, wanted)


def test_a_mask_given_by_its_name_counts() -> None:
    """So do the Conformer layers of Parakeet, whose mask holds the positions."""
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.rand(2, 4, 3, 8, generator=chance) for _ in range(3))
    mask = torch.rand(2, 4, 3, 3, generator=chance)
    wanted = (torch.softmax(query @ key.mT * 0.3 + mask, -1) @ value).transpose(1, 2)
    found, _ = Setting("portable").attention(
        nn.Identity(), query=query, key=key, value=value, attention_mask=mask, scaling=0.3
    )
    torch.testing.assert_close(found, wanted)


def test_a_token_sees_the_positions_chosen_for_it_alone() -> None:
    """DeepSeek's sparse attention gives its choice to any function but torch's own."""
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.rand(2, 4, 3, 8, generator=chance) for _ in range(3))
    key, value = torch.cat([key, key + 1], 2), torch.cat([value, value - 1], 2)
    causal = torch.zeros(2, 1, 3, 6).masked_fill(torch.ones(3, 6).triu(4).bool(), MASKED)
    chosen = torch.rand(2, 3, 6, generator=chance).topk(4).indices.to(torch.int32)
    hidden = torch.ones(2, 3, 6, dtype=torch.bool).scatter(-1, chosen.long(), False)[:, None]
    for mask in (causal, None):
        scores = query @ key.mT * 0.3 + (0.0 if mask is None else mask)
        wanted = torch.softmax(scores.masked_fill(hidden, MASKED), -1) @ value
        found, _ = Setting("fused").attention(nn.Identity(), query, key, value, mask, scaling=0.3, indices=chosen)
        torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_blocks_that_a_layer_chooses_are_refused() -> None:
    parts = [torch.rand(1, 2, 3, 8)] * 3
    with pytest.raises(StageError, match="Identity attends to blocks of keys of its choice"):
        Setting("portable").attention(nn.Identity(), *parts, block_indices=torch.zeros(1, 3, 1))
