"""What no graph has is named, and is left out only under its name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from msao_compile.errors import CheckpointError, StageError
from msao_compile.families.checkpoint import Source, locate
from msao_compile.families.left_out import parts, refuse_surplus, refuse_unread, surplus, unanswered, unread
from msao_compile.families.registry import open_checked
from tests.families.test_outline import opened


def sources(model: Any) -> dict[str, Source]:
    return {
        name: Source("model.safetensors", name, 0, 0, "F32", tuple(value.shape))
        for name, value in model.state_dict().items()
    }


def unread_but(model: Any, read: Callable[[str], bool], exclude: tuple[str, ...] = ()) -> Mapping[str, int]:
    held = sources(model)
    return unread(model, held, {source for name, source in held.items() if read(name)}, exclude)


def test_a_part_is_the_largest_module_of_one_component() -> None:
    llava = {path: component for path, (component, _) in parts(opened("llava")).items()}
    assert llava == {
        "model.vision_tower": "vision_encoder",
        "model.multi_modal_projector": "vision_encoder",
        "model.language_model.embed_tokens": "embed_tokens",
        "model.language_model.layers": "decoder",
        "model.language_model.norm": "decoder",
        "lm_head": "decoder",
    }
    assert {"encoder", "enc_to_dec_proj"} <= set(parts(opened("vision-encoder-decoder")))  # and not encoder.pooler


def test_a_part_that_is_read_in_places_is_whole_and_one_that_is_nowhere_read_is_not() -> None:
    llava = opened("llava")
    assert not unread_but(llava, lambda name: "layers.1." not in name and "post_layernorm" not in name)
    held = sum(value.numel() for name, value in llava.named_parameters() if name.startswith("model.vision_tower"))
    left = unread_but(llava, lambda name: "vision_tower" not in name)
    assert left == {"model.vision_tower": held}
    with pytest.raises(
        StageError, match=rf'no graph reads {held} parameters in model.vision_tower: .*\["model.vision_'
    ):
        refuse_unread("Llava", left, ["model.vision"])
    refuse_unread("Llava", left, ["model.vision_tower"])
    assert not unread_but(llava, lambda name: "vision_tower" not in name, ("vision_encoder",))


def test_what_paints_pictures_is_known_without_a_graph() -> None:
    assert set(unanswered(opened("janus"))) == {
        "model.vqmodel", "model.generation_embeddings", "model.generation_aligner", "model.generation_head",
    }  # fmt: skip
    assert not unanswered(opened("llava"))


def test_tied_parameters_are_read_under_either_name() -> None:
    smolvlm = opened("smolvlm")
    assert not unread_but(smolvlm, lambda name: name != "lm_head.weight")


SURPLUS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    # what older versions saved and every version computes
    "positions": ("clip", {"text_model.embeddings.position_ids": torch.arange(3)[None]}, {}),
    "frequencies": ("llava", {f"language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4)
                              for n in range(2)}, {}),
    "minus infinity": ("whisper", {"model.decoder.layers.0.self_attn.masked_bias": torch.tensor(-1e4)}, {}),
    # what is of another model
    "a head": ("llava", {"value_head.weight": torch.ones(2, 3), "value_head.bias": torch.ones(2)}, {"value_head": 8}),
    "a layer": ("llava", {"language_model.model.layers.2.norm.weight": torch.ones(3)},
                {"language_model.model.layers.2": 3}),
    "in layers": ("llava", {f"language_model.model.layers.{n}.self_attn.q_norm.weight": torch.ones(8)
                            for n in range(2)},
                  {"language_model.model.layers.*.self_attn.q_norm": 16}),
    "by chance alike": ("llava", {"talker.layers.0.rotary_emb.inv_freq": torch.ones(4), "talker.w": torch.ones(5)},
                        {"talker": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", SURPLUS)
def test_tensors_that_the_model_has_no_place_for_are_named_by_their_part(
    checkpoint: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    family, more, expected = SURPLUS[name]
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / "mine"))
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})
    model = open_checked(folder)
    found = surplus(model, locate(folder, model))
    assert found == expected
    if expected:
        [part] = expected
        with pytest.raises(CheckpointError, match=rf"{expected[part]} parameters in {re.escape(part)} are not part of"):
            refuse_surplus(folder, found, ["other"])
    refuse_surplus(folder, found, [*expected])
