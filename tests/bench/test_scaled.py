"""The small random models of the real run: what stays equal, whose weights are copied, what counts as equal bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from msao_compile.recipe.read import read_recipe
from tests.bench.scaled import DUAL, EXTRAS, LINEAR, _same_bits, distinct_bytes, markdown, recipe_of, small, write
from tests.bench.shares import read_facts
from tests.bench.sharing import FACTS, RECIPE, Use

CLIP = json.loads((FACTS.parent / "clip-vit-l14-336" / "config.json").read_text(encoding="utf-8"))
LLAVA = json.loads((FACTS.parent / "llava-1.5-7b" / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("scaled"))


def held(folder: Path, *words: str) -> list[torch.Tensor]:
    """Tensors of a checkpoint whose names have one of the words, by the rest of their names."""
    found = load_file(folder / "model.safetensors")
    return [found[name] for name in sorted(found) if any(word in name for word in words)]


def test_a_small_config_is_of_the_same_kind_and_its_equal_towers_stay_equal() -> None:
    made, other = small(CLIP), small(LLAVA)
    assert (made["architectures"], made["model_type"]) == (CLIP["architectures"], CLIP["model_type"])
    assert made["vision_config"] == other["vision_config"]
    assert made["vision_config"]["hidden_size"] == 32
    assert other["text_config"]["hidden_size"] == 64


def test_a_tower_with_a_layer_less_still_has_a_layer_less() -> None:
    towers = {"a": {"num_hidden_layers": 27}, "b": {"num_hidden_layers": 26}}
    assert small(towers) == {"a": {"num_hidden_layers": 3}, "b": {"num_hidden_layers": 2}}


def test_grouped_key_value_heads_stay_fewer() -> None:
    grouped = small({"num_attention_heads": 14, "num_key_value_heads": 2})
    assert (grouped["num_attention_heads"], grouped["num_key_value_heads"]) == (4, 2)
    assert small({"num_attention_heads": 32, "num_key_value_heads": 32})["num_key_value_heads"] == 4


def test_a_declared_tower_has_its_origins_weights(checkpoints: dict[str, Path]) -> None:
    assert len(checkpoints) == 14 + len(EXTRAS)
    for share in read_facts(FACTS).share:
        part, origin = (folder.rpartition(".")[2] for folder in (share.part, share.origin_part))
        mine = held(checkpoints[share.model], part, "vision_tower")
        theirs = held(checkpoints[share.origin], f"{origin}.")
        assert mine
        assert all(any(torch.equal(one, other) for other in theirs) for one in mine), share


def test_what_is_not_declared_is_not_equal(checkpoints: dict[str, Path]) -> None:
    for one, other in (
        ("clip-vit-b16", "clip-vit-l14"),
        (LINEAR, f"{LINEAR}-2"),
        (DUAL, "llava-1.5-7b"),
        (DUAL, f"{DUAL}-lit"),
    ):
        heads = [held(checkpoints[name], "text_model", "classifier", "language_model") for name in (one, other)]
        assert not any(torch.equal(first, second) for first in heads[0] for second in heads[1])


def test_models_on_one_tower_have_its_weights(checkpoints: dict[str, Path]) -> None:
    for extra, (origin, parts) in EXTRAS.items():
        mine, theirs = (held(checkpoints[name], *parts) for name in (extra, origin))
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_equal_tensors_of_several_files_count_once(checkpoints: dict[str, Path]) -> None:
    alone, _ = distinct_bytes([checkpoints[LINEAR]])
    total, distinct = distinct_bytes([checkpoints[name] for name in (LINEAR, f"{LINEAR}-2")])
    heads = sum(one.numel() * 4 for one in held(checkpoints[LINEAR], "classifier"))
    assert total == 2 * alone
    assert distinct_bytes([checkpoints[LINEAR]])[1] + heads == distinct
    pair = [checkpoints[name] for name in (DUAL, "llava-1.5-7b")]  # which name their tower differently
    tower = sum(one.numel() * 4 for one in held(pair[0], "vision_model."))
    assert distinct_bytes(pair)[1] == sum(distinct_bytes([one])[1] for one in pair) - tower


def test_recipes_of_one_and_of_all_are_read(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    uses = [Use("retrieval", "clip-vit-b16"), Use("classification", "clip-vit-b16"), Use("vqa", "qwen2-vl-2b")]
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_of("one", {"clip-vit-b16": checkpoints["clip-vit-b16"]}, uses), encoding="utf-8")
    assert list(read_recipe(file).tasks) == ["retrieval.clip-vit-b16", "classification.clip-vit-b16"]
    every = {name: checkpoints[name] for name in read_recipe(RECIPE).models}
    file.write_text(recipe_of("all", every, uses), encoding="utf-8")
    assert set(read_recipe(file).models) == set(every)


def test_one_bit_is_a_difference() -> None:
    one = np.zeros(2, np.float32)
    assert _same_bits(one, np.zeros(2, np.float32))
    assert not _same_bits(one, -one)  # negative zero equals zero, and is not the same bits
    assert not _same_bits(one, np.zeros(2, np.float64))
    assert not _same_bits(one, np.zeros((1, 2), np.float32))


def test_the_page_says_when_the_deployment_was_not_built() -> None:
    told: dict[str, Any] = {"command": "run", "commit": "0" * 12, "fault": "it broke"}
    assert "was not built:** it broke" in markdown(told)
