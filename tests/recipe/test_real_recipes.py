"""The recipes of real checkpoints: they read, and their targets hold models of the true dimensions.

The files in `configs/` were written from the published numbers of the checkpoints, not downloaded: dimensions, layers,
heads and vocabularies are the public ones, and the parameters they give are held to the published counts.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from building import ROOT, run_here

from msao_compile import sketch
from msao_compile.cli.app import main
from msao_compile.recipe.read import read_recipe
from msao_compile.stages import outline

CONFIGS = Path(__file__).parent / "configs"
ELSEWHERE = ("shapes-", "s2m3-")
"""Recipes of folders beside them; those of s2m3 are held to their numbers in `tests/bench/test_sharing.py`."""
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.toml") if not path.name.startswith(ELSEWHERE))
PUBLISHED = {
    # checkpoint -> published parameters in billions, and what the config's dimensions give for its encoders
    "Qwen/Qwen2-VL-2B-Instruct": (2.21, {"vision_encoder": 0.665}),
    "Qwen/Qwen2.5-VL-7B-Instruct": (8.29, {"vision_encoder": 0.676}),
    "HuggingFaceTB/SmolVLM-256M-Instruct": (0.256, {"vision_encoder": 0.0935}),
    "llava-hf/llava-1.5-7b-hf": (7.06, {"vision_encoder": 0.3245}),
    "OpenGVLab/InternVL3-1B-hf": (0.938, {"vision_encoder": 0.3085}),
    "Qwen/Qwen2.5-Omni-3B": (4.70, {"vision_encoder": 0.67, "audio_encoder": 0.64}),
    "openai/whisper-small": (0.2417, {"audio_encoder": 0.0882}),
}
KV_BYTES_PER_TOKEN = {
    "Qwen/Qwen2-VL-2B-Instruct": 28 * 2 * 2 * 128 * 2,
    "Qwen/Qwen2.5-VL-7B-Instruct": 28 * 2 * 4 * 128 * 2,
    "HuggingFaceTB/SmolVLM-256M-Instruct": 30 * 2 * 3 * 64 * 2,
    "llava-hf/llava-1.5-7b-hf": 32 * 2 * 32 * 128 * 2,
    "OpenGVLab/InternVL3-1B-hf": 24 * 2 * 2 * 64 * 2,
    "Qwen/Qwen2.5-Omni-3B": 36 * 2 * 2 * 128 * 2,
    "openai/whisper-small": 12 * 2 * 12 * 64 * 2,
}


def config(checkpoint: str) -> Path:
    return CONFIGS / f"{checkpoint.replace('/', '--')}.json"


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every checkpoint's outline, from its config alone."""
    found = {}
    for checkpoint in PUBLISHED:
        folder = tmp_path_factory.mktemp("config")
        shutil.copy(config(checkpoint), folder / "config.json")
        found[checkpoint] = outline.run({"checkpoint": str(folder)}, lambda record: None)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_be_read(recipe: Path) -> None:
    found = read_recipe(recipe)
    assert found.name == recipe.stem
    assert {model.checkpoint for model in found.models.values()} <= set(PUBLISHED)


def test_every_config_belongs_to_a_recipe() -> None:
    named = {model["checkpoint"] for path in RECIPES for model in tomllib.loads(path.read_text())["models"].values()}
    assert named == set(PUBLISHED)
    assert {path.name for path in CONFIGS.iterdir()} == {config(checkpoint).name for checkpoint in PUBLISHED}


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_parameters_are_the_published_ones_within_one_percent(
    outlined: dict[str, dict[str, Any]], checkpoint: str
) -> None:
    billions, components = PUBLISHED[checkpoint]
    found = outlined[checkpoint]
    assert found["params"] / 1e9 == pytest.approx(billions, rel=0.01)
    sizes = {one["component"]: one["params"] / 1e9 for one in found["components"]}
    assert {name: sizes[name] for name in components} == pytest.approx(components, rel=0.01)


@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_the_kv_cache_is_that_of_the_published_heads(outlined: dict[str, dict[str, Any]], checkpoint: str) -> None:
    cost = outlined[checkpoint]["kv"]
    assert 2 * cost["full_elements_per_token"] == KV_BYTES_PER_TOKEN[checkpoint]
    assert cost["window_elements_per_token"] == cost["state_elements"] == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_target_of_a_shipped_recipe_can_hold_its_models(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copy(recipe, tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(sketch, "run_job", run_here)
    for number, model in enumerate(read_recipe(mine).models.values()):
        home = tmp_path / "hf" / f"models--{model.checkpoint.replace('/', '--')}"
        snapshot = home / "snapshots" / f"{number:040x}"
        snapshot.mkdir(parents=True)
        shutil.copy(config(model.checkpoint), snapshot / "config.json")
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(f"{number:040x}")
    capsys.readouterr()
    assert main(["plan", str(mine), "--json", "--store", str(tmp_path / "store")]) == 0
    found = json.loads(capsys.readouterr().out)["sketch"]["models"]
    short = [(model["name"], room["target"]) for model in found for room in model["targets"] if not room["fits"]]
    assert short == [] and all(model["targets"] for model in found)
