"""Attention as the graphs compute it, beside what a modeling file computes itself."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.inkling2.modeling_inkling2 import eager_attention_forward

from msao_compile.graph.attend import Setting


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
