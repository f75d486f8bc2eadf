"""A recipe whose parity fails is bisected, given the island that helps, and built: only the module in it runs again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from building import Workshop, run, write_recipe

BOUND = 0.9999996
"""Between what half precision makes of the tiny decoder and what it makes of its second block alone."""
DEVICE = '[targets.device]\ndevice = "local-cpu"\nprecision = "fp32"'
ORIN = 'device = "jetson-agx-orin-64gb"'
FIRST = "model.text_model.layers.0"


@pytest.fixture(scope="module")
def mine(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop of my own that has traced what the shared one has."""
    made = Workshop(tmp_path_factory.mktemp("bisected"))
    shutil.copytree(workshop.options.store, made.options.store)
    return made


@pytest.fixture(scope="module")
def recipe(mine: Workshop, checkpoint: Callable[..., Path]) -> Path:
    """Two targets whose engines their devices build, so that all that runs here are graphs."""
    file = write_recipe(mine.folder / "bisected.toml", {"edge": (checkpoint("idefics3"), "draft")})
    text = file.read_text().replace(DEVICE, f'[targets.device]\n{ORIN}\nprecision = {{ decoder = "fp16" }}')
    text = text.replace("[shapes", f'[targets.wide]\n{ORIN}\ndialect = "portable"\nprecision = "bf16"\n[shapes')
    file.write_text(text.replace("[parity]", f"[parity]  # tight\nfp16 = {{ min_cosine = {BOUND} }}"))
    return file


def looked_into(mine: Workshop, *arguments: object) -> tuple[int, dict[str, Any], str]:
    ran = run("parity", *arguments, "--bisect", "--json", workshop=mine)
    return ran.returncode, json.loads(ran.stdout), ran.stderr


def test_a_failure_is_found_in_its_block_and_an_island_mends_it(mine: Workshop, recipe: Path) -> None:
    failed = run("build", recipe, workshop=mine)
    assert failed.returncode == 5
    assert (
        f"`msao-compile parity {recipe} --bisect --store {mine.options.store} --out {mine.options.out}`"
        in failed.stderr
    )

    code, found, told = looked_into(mine, recipe, "--target", "device")
    assert (code, found["asked"], found["islands"]) == (0, "the requests of parity", {"decoder": [FIRST]})
    [entry] = found["modules"]
    blocks = {one["name"]: one for one in entry["blocks"]}
    last = list(blocks)[-1]
    assert (entry["first"], entry["worst"], list(blocks)) == (last, FIRST, [FIRST, "model.text_model.layers.1"])
    assert blocks[FIRST]["min_cosine"] >= BOUND > blocks[last]["min_cosine"]
    assert blocks[FIRST]["own"] == pytest.approx(1 - blocks[FIRST]["min_cosine"])
    assert blocks[last]["own"] < 1 - blocks[last]["min_cosine"]
    assert f"--apply {recipe}`" in told

    text = recipe.read_text()
    code, found, told = looked_into(mine, recipe, "--target", "device", "--apply", recipe)
    assert code == 0, told
    assert recipe.read_text() == f'{text}\n[islands]\ndecoder = ["{FIRST}"]\n'
    assert sorted(found["ran"]) == [
        "measure routes", "parity edge", "quantize edge/decoder (portable bf16)",
        "quantize edge/decoder (portable fp16)",
    ]  # fmt: skip

    folder = mine.options.out / "bisected"
    code, found, told = looked_into(mine, folder, "--target", "device", "--apply", recipe)
    assert (code, found["islands"], found["asked"]) == (0, {}, "seeded questions")
    [entry] = found["modules"]
    assert entry["blocks"][0]["min_cosine"] > 1 - 5e-8  # state stays in half
    assert f"{recipe} stays as it is and nothing is built" in told
    assert recipe.read_text().count("[islands]") == 1

    code, found, told = looked_into(mine, folder, "--target", "wide")
    assert (code, found["modules"]) == (0, [])
    assert set(found["left_out"]) == {f"wide edge/{name}" for name in ("vision_encoder", "embed_tokens", "decoder")}
    assert "multiplies nothing in bf16" in told


def test_what_is_asked_for_must_be_there(deployment: Path) -> None:
    for option, there in (("--target", "device"), ("--model", "edge"), ("--component", "decoder")):
        ran = run("parity", deployment, "--bisect", option, "nothing")
        assert ran.returncode == 2
        assert f"{option} nothing: no such {option[2:]}; there are" in ran.stderr and there in ran.stderr
    ran = run("parity", deployment, "--bisect")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "no module is in less than fp32" in ran.stderr


def test_the_island_goes_into_the_recipe_of_the_deployment_only(mine: Workshop, recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace('name = "bisected"', 'name = "other"').split("\n[islands]")[0])
    tight = tmp_path / "bisected.toml"
    tight.write_text(recipe.read_text().split("\n[islands]")[0])
    ran = run("parity", tight, "--bisect", "--target", "device", "--apply", other, workshop=mine)
    assert ran.returncode == 2
    assert "is the recipe of other, not of bisected" in ran.stderr
    assert "islands" not in other.read_text()
