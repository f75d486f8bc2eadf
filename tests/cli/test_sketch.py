"""`plan` on a recipe whose checkpoints have a config.json alone: modules, KV cache, and what can hold them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msao_compile.cli.app import main

RECIPE = """
recipe = 1
name = "tiny"
[models.edge]
checkpoint = "edge"
role = "draft"
[tasks.vqa]
models = ["edge"]
[targets.jetson]
device = "jetson-orin-nano-8gb"
precision = { vision_encoder = "fp16", embed_tokens = "fp16", decoder = "int4" }
[shapes.decoder]
batch = [1, 1, 2]
sequence = [1, 16, 64]
kv_capacity = 256
"""


@pytest.fixture
def recipe(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe whose checkpoint folder has nothing but a config.json."""
    (tmp_path / "edge").mkdir()
    shutil.copy(checkpoint("llava") / "config.json", tmp_path / "edge")
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def told(recipe: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", str(recipe), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out)["sketch"])


def test_a_config_alone_tells_modules_cache_and_targets(told: dict[str, Any]) -> None:
    [model] = told["models"]
    assert (model["name"], model["architecture"], model["has_weights"]) == (
        "edge",
        "LlavaForConditionalGeneration",
        False,
    )
    assert [one["component"] for one in model["components"]] == ["vision_encoder", "embed_tokens", "decoder"]
    assert sum(one["params"] for one in model["components"]) == model["params"]
    assert sum(len(one["parameters"]) for one in model["components"]) > 50
    per_token = 2 * 2 * 8 * 2 * 2  # keys and values, heads, their size, layers, bytes
    assert (model["kv"]["bytes_per_token"], model["kv"]["bytes_at_capacity"]) == (per_token, per_token * 256)


def test_a_target_holds_its_own_precisions_and_every_sequence(told: dict[str, Any]) -> None:
    [model] = told["models"]
    [room] = model["targets"]
    sizes = {one["component"]: one["bytes"] for one in model["components"]}
    assert room["weight_bytes"] == (
        sizes["vision_encoder"]["fp16"] + sizes["embed_tokens"]["fp16"] + sizes["decoder"]["int4"]
    )
    assert room["kv_bytes"] == 2 * model["kv"]["bytes_at_capacity"]
    assert room["fits"] and room["free_bytes"] == room["memory_bytes"] - sum(
        room[name] for name in ("weight_bytes", "kv_bytes", "reserve_bytes")
    )
    assert {room["precision"] for room in model["devices"]} == {"fp16", "int8", "int4"}
    assert "nvidia-h200" in {room["device"] for room in model["devices"]}


def test_people_get_the_same_as_tables(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["plan", str(recipe), "--store", str(recipe.parent / "store")]) == 0
    said = capsys.readouterr()
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[0].startswith("edge: LlavaForConditionalGeneration, ")
    assert any(line.startswith("vision_encoder ") and line.endswith("get_image_features") for line in lines)
    assert any(line.startswith("KV cache at 16 bits: 128 B a token in 2 layers") for line in lines)
    assert any(line.startswith("jetson jetson-orin-nano-8gb fp16/int4 ") and "fits, " in line for line in lines)
    assert "no *.safetensors yet, so this is told from config.json" in said.err
    assert not (recipe.parent / "store").exists()


def test_a_model_that_is_too_large_is_told_how_much_is_missing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe.parent / "edge" / "config.json"
    large = json.loads(config.read_text())
    large["text_config"].update(num_hidden_layers=16, hidden_size=8192, intermediate_size=28672, head_dim=2048)
    config.write_text(json.dumps(large))
    capsys.readouterr()
    assert main(["plan", str(recipe)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("jetson "))
    assert row.endswith(" short")


def test_what_is_refused_in_a_config_is_refused_without_weights_too(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe.parent / "edge" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoConfig": "moon.Moon"}}))
    capsys.readouterr()
    assert main(["plan", str(recipe)]) == 2
    assert "set models.edge.trust_remote_code = true" in capsys.readouterr().err


def test_a_build_still_asks_for_the_weights(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["build", str(recipe), "--out", str(recipe.parent / "o"), "--store", str(recipe.parent / "s")]) == 2
    assert "no *.safetensors file" in capsys.readouterr().err
