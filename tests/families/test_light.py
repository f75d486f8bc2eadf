"""A large model that is looked at without computing its layers shows what one that computes them shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from msao_compile.families import light
from msao_compile.families.checkpoint import read_sources
from msao_compile.families.registry import open_checked
from msao_compile.families.runnable import read_whole_numbers, runnable
from msao_compile.families.subject import describe
from msao_compile.stages.split import _looked


def test_the_examples_of_a_model_whose_layers_are_not_computed_are_the_same(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runnable(open_checked(checkpoint("qwen2_5_vl")))
    computed = describe(model)
    monkeypatch.setattr(light, "LARGE", 0)
    ran: list[str] = []
    layer = model.get_submodule("model.language_model.layers.1")
    layer.self_attn.register_forward_hook(lambda *_: ran.append("computed") if not _[2][0].is_meta else None)
    with light.light(model):
        assert "forward" in vars(layer)
        looked = describe(model)
    assert "forward" not in vars(layer) and ran == []
    for one, other in zip(computed.examples, looked.examples, strict=True):
        assert {name: value.shape for name, value in one.items()} == {
            name: value.shape for name, value in other.items()
        }
    assert (looked.encoders, looked.needs, looked.names) == (computed.encoders, computed.needs, computed.names)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_a_trace_wants_to_know_of_a_large_model_computes_none_of_its_layers(
    family: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for the rotary tables, whose halves are compared: a look at 3 B parameters took minutes."""
    model = runnable(open_checked(checkpoint(family)))
    monkeypatch.setattr(light, "LARGE", 0)
    [layers] = [part for name, part in model.named_modules() if name.endswith("language_model.layers")]
    kinds: list[str] = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: kinds.append(args[0].device.type))
    with light.light(model):
        seen = [found for _, found in _looked(describe(model))]
    assert set(kinds) == {"meta"} and all(found.rotary for found in seen)


def test_a_large_model_computes_no_product_and_keeps_no_state(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a layer that looks at its data and of a large vocabulary took two minutes of 3 B parameters."""
    model = runnable(open_checked(checkpoint("llava")))
    monkeypatch.setattr(light, "LARGE", 0)
    ids = torch.full((1, 5), 9)
    with light.light(model):
        inside = model(input_ids=ids)
        monkeypatch.setattr(nn.functional, "linear", None)
        head = model.lm_head(torch.ones(2, 32))
    assert (head.shape, head.dtype, head.any().item()) == ((2, 722), torch.float32, False)
    assert inside.past_key_values is None and inside.logits.shape == (1, 5, 722)
    assert "forward" not in vars(model.lm_head) and model.config.text_config.use_cache


def test_a_layer_that_looks_at_its_data_is_tried_without_it_once() -> None:
    class Reader(nn.Module):
        tries = 0

        def forward(self, value: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
            Reader.tries += value.is_meta
            return value[: bounds.tolist()[0]]

    known: dict[object, object] = {}
    for layer in (Reader(), Reader()):
        answered = light._Light(layer, known)(torch.ones(4, 2), torch.tensor([3]))
        assert torch.equal(answered, torch.ones(3, 2))
    assert Reader.tries == 1


def test_zeros_stand_for_what_has_no_data_and_nothing_else_is_changed() -> None:
    for kind in (torch.float32, torch.int64, torch.bool):
        made = light._zeros(torch.empty(2, 3, dtype=kind, device="meta"))
        assert (made.shape, made.dtype, made.device.type) == ((2, 3), kind, "cpu") and not made.any()
    given = torch.ones(3)
    assert light._zeros(given) is given


def test_tables_of_whole_numbers_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """By zeros in their place a model may divide."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("sizes", torch.tensor([5, 7]))
            self.register_buffer("scale", torch.tensor([0.5]))

    save_file(Table().state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        bare = Table()
    model = runnable(bare)
    read_whole_numbers((tmp_path, tmp_path), model, read_sources(tmp_path / "model.safetensors"))
    assert (model.sizes.tolist(), model.scale.tolist()) == ([5, 7], [0.0])
