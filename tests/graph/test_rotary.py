"""One node rotates only where both halves of a table are alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from msao_compile.graph.attend import Setting, Watch, attending

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


def _model() -> nn.Module:
    return modeling_llama.LlamaModel(LlamaConfig(**SIZES))


def _parts(alike: bool) -> tuple[torch.Tensor, ...]:
    chance = torch.Generator().manual_seed(3)
    query, key = (torch.rand(1, 2, 3, 8, generator=chance) for _ in range(2))
    angles = torch.rand(1, 3, 8, generator=chance)
    if alike:
        angles = angles[..., :4].repeat(1, 1, 2)
    return query, key, angles.cos(), angles.sin()


@pytest.mark.parametrize("alike", [True, False])
def test_runs_tell_whether_the_halves_of_tables_are_alike(alike: bool) -> None:
    """M-RoPE of HunYuanVL gives other axes to the second half of a head than to the first."""
    parts, watch = _parts(alike), Watch()
    wanted = modeling_llama.apply_rotary_pos_emb(*parts)
    with attending(Setting("portable", watch=watch), _model()):
        _, _ = modeling_llama.apply_rotary_pos_emb(*_parts(True))
        found = modeling_llama.apply_rotary_pos_emb(*parts)
        _, _ = modeling_llama.apply_rotary_pos_emb(*_parts(True))
    assert watch.halves is alike
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_where_they_are_not_the_model_rotates_as_it_does() -> None:
    parts, original = _parts(False), modeling_llama.apply_rotary_pos_emb
    with attending(Setting("fused", rotary=False), _model()):
        assert modeling_llama.apply_rotary_pos_emb is original
    with attending(Setting("fused"), _model()):
        assert modeling_llama.apply_rotary_pos_emb is not original
    with attending(Setting("portable"), _model()):
        found = modeling_llama.apply_rotary_pos_emb(*parts)
    assert modeling_llama.apply_rotary_pos_emb is original
    assert torch.equal(found[0], original(*parts)[0])


def test_one_table_for_all_rows_is_given_to_each_of_them() -> None:
    query, key, cos, sin = _parts(True)
    rows = query.repeat(3, 1, 1, 1), key.repeat(3, 1, 1, 1)

    class Rotated(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)[0]
            return found

    shapes = {"q": {0: torch.export.Dim("rows")}, "k": {0: torch.export.Dim("rows")}, "cos": None, "sin": None}
    with attending(Setting("fused"), _model()), torch.no_grad():
        program = torch.export.export(Rotated(), (*rows, cos, sin), dynamic_shapes=shapes, strict=False)
    node, _ = [node for node in program.graph.nodes if "onnx_symbolic" in str(node.target)]
    tokens, *tables = (found.meta["val"] for found in node.args[0])
    assert [str(table.shape[0]) for table in tables] == [str(tokens.shape[0])] * 2
