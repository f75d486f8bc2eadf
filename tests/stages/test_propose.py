"""The recipe that `init` proposes: valid, and naming the checkpoint, whatever its folder is called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
