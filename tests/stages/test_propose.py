"""The recipe that `init` proposes: valid, and naming the checkpoint, whatever its folder is called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from msao_compile.errors import CheckpointError
from msao_compile.families.structure import structure
from msao_compile.recipe.read import read_recipe
from msao_compile.stages.propose import propose


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ('a"b', "a-b"), ("back\\slash", "back-slash"), ("modèle", "modele"), ("模型", "model"), ("_x", "x"),
        ("tab\there\x7f", "tab-here"), ("v1.5", "v1-5"), ("x" * 100, "x" * 64), ("😀", "model"),
    ],
)  # fmt: skip
def test_a_proposed_recipe_can_be_read_whatever_the_folder_is_called(
    checkpoint: Callable[..., Path], tmp_path: Path, called: str, name: str
) -> None:
    folder, recipe = Path(shutil.copytree(checkpoint("llava"), tmp_path / called)), tmp_path / "recipe.toml"
    recipe.write_text(propose(folder, recipe)["recipe_toml"], encoding="utf-8")
    found = read_recipe(recipe)
    assert (found.name, found.models["model"].checkpoint) == (name, str(folder))


@pytest.mark.parametrize("auto_map", [None, {"AutoModel": "modeling_new.New"}])
def test_a_family_that_cannot_be_opened_is_shown_by_its_tensors_and_the_recipe_says_what_it_needs(
    checkpoint: Callable[..., Path], tmp_path: Path, auto_map: dict[str, str] | None
) -> None:
    folder, recipe = Path(shutil.copytree(checkpoint("llava"), tmp_path / "new")), tmp_path / "recipe.toml"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "new", "auto_map": auto_map}))
    found = propose(folder, recipe)
    known = propose(checkpoint("llava"), recipe)
    assert ("auto_map names remote code" if auto_map else "model_type 'new' is none of") in found["refused"]
    sizes = [sum(part["bytes"] for part in told["modules"]) for told in (found, known)]
    assert sizes[0] == sizes[1]
    told = {part["found_by"].removeprefix("tensors named "): part["component"] for part in found["modules"]}
    layers = {path: component for path, component in told.items() if path.endswith("2 layers")}
    assert sorted(layers.values()) == ["decoder", "vision_encoder"]
    assert "embed_tokens" in told.values()
    recipe.write_text(found["recipe_toml"], encoding="utf-8")
    assert read_recipe(recipe).models["model"].trust_remote_code


def test_two_layers_of_one_stack_are_one_row(tmp_path: Path) -> None:
    tensors = {f"deep.tower.blocks.{layer}.w": np.ones((2, 3), np.float32) for layer in range(4)}
    save_file({**tensors, "shared": np.ones(5, np.float32)}, tmp_path / "model.safetensors")
    found = {stack.path: stack for stack in structure(tmp_path)}
    blocks = found["deep.tower.blocks"]
    assert (blocks.component, blocks.params, blocks.size_bytes, len(blocks.layers)) == ("decoder", 24, 96, 4)
    assert blocks.found_by == "tensors named deep.tower.blocks, 4 layers"
    assert (found["shared"].component, found["shared"].params) == ("embed_tokens", 5)


def test_what_transformers_itself_leaves_out_of_a_checkpoint_is_left_out_by_name(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = Path(shutil.copytree(checkpoint("llava"), tmp_path / "mine")), tmp_path / "recipe.toml"
    held = load_file(folder / "model.safetensors")
    save_file({**held, "mtp.fc.weight": np.ones((2, 3), np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"6 parameters in mtp are not part of the model"):
        propose(folder, recipe)
    monkeypatch.setattr(
        transformers.LlavaForConditionalGeneration, "_keys_to_ignore_on_load_unexpected", ["^mtp"], raising=False
    )
    found = propose(folder, recipe)
    assert "6 parameters in mtp answer no request that is known here" in found["unsupported"][0]
    recipe.write_text(found["recipe_toml"], encoding="utf-8")
    assert read_recipe(recipe).export.exclude == ("mtp",)
