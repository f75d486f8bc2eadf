"""Engines of cloud GPUs, built for real where there is none: the shapes pair, a larger model, one of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import checkpoints
import pytest
from building import ROOT, run_here, write_recipe

from msao_compile import runner
from msao_compile.manifest.schema import Deployment
from msao_compile.pipeline import Built, Options, build
from msao_compile.recipe.schema import Component
from msao_compile.recipe.targets import find
from msao_compile.runtime.backends import engine_file
from tests.bench import standard
from tests.bench.work import Layout

pytestmark = pytest.mark.whole
GPUS = {"t4": ["sm75"], "ampere": ["sm80", "sm86"], "l4": ["sm89"], "pro6000": ["sm120"]}
COMPONENTS = {"vision_encoder", "embed_tokens", "decoder"}
KINDS = {
    "clip": {"vision_encoder", "text_encoder", "classifier"},
    "whisper": {"audio_encoder", "embed_tokens", "decoder"},
    "qwen2_vl": {"vision_encoder", "video_encoder", "embed_tokens", "decoder"},
    "florence2": {"vision_encoder", "encoder", "embed_tokens", "decoder"},
}
"""Every kind of module that there is, each in at least one tiny family."""
L4 = """
[targets.l4]
device = "nvidia-l4"
precision = "fp32"
dialect = "portable"
level = "draft"
"""
ROOM = 1.25
"""Bytes of an engine for each of its fp16 weights, at most: they are there once for prefill and decode."""


def made(recipe: Path, folder: Path) -> Built:
    """A build of its own."""
    return build(recipe, Options(out=folder / "deployments", store=folder / "store", jobs=2), lambda event: None)


def headers(found: Built, target: str) -> dict[str, dict]:
    """What each engine file of a target says of itself, by model and component."""
    deployment: Deployment = found.deployment
    files = [engine.file for engine in deployment.engines if engine.target == target]
    assert all(file is not None for file in files)
    return {
        Path(file.path).parent.name + "/" + header["component"]: header
        for file in files
        for header in [engine_file.read_header(found.folder / file.path, verify=True)]
    }


def test_the_shapes_pair_is_built_for_every_gpu_of_its_recipe(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines of cloud GPUs")
    found = made(ROOT / "recipes" / "shapes-gpus.toml", tmp_path)
    for target, capabilities in GPUS.items():
        told = headers(found, target)
        assert set(told) == {f"{model}/{component}" for model in ("edge", "cloud") for component in COMPONENTS}
        assert {tuple(header["gpu_architectures"]) for header in told.values()} == {tuple(capabilities)}
    engines = [engine for engine in found.deployment.engines if engine.target in GPUS]
    assert {engine.status for engine in engines} == {"built"}
    assert {engine.precision for engine in engines} == {"fp16", "bf16", "int8", "fp8", "int4"}
    assert {engine.dialect for engine in engines if engine.target != "t4"} == {"scatter"}


def test_the_standard_model_is_built_and_holds_its_weights_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines of cloud GPUs")
    standard.make(tmp_path)
    recipe = Layout(tmp_path).recipe
    text = recipe.read_text().replace('device = "local-cpu"\nprecision = "fp32"\ndialect = "fused"', "{target}")
    assert "{target}" in text
    device = "nvidia-a10"
    recipe.write_text(
        text.replace("{target}", f'device = "{device}"\ndialect = "scatter"\nprecision = "fp16"\nlevel = "draft"')
    )
    found = made(recipe, tmp_path)
    told = headers(found, "cpu")
    assert {header["gpu_architectures"][0] for header in told.values()} == {f"sm{find(device).sm}"}
    for module in found.deployment.modules:
        [half] = [graph for graph in module.graphs if graph.precision == "fp16"]
        weights = sum(file.size_bytes for file in half.data)
        assert told[f"standard/{module.component}"]["plan_bytes"] < ROOM * weights + (8 << 20)


@pytest.mark.parametrize("family", KINDS)
def test_every_kind_of_module_becomes_an_engine_with_no_range_from_the_recipe(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines of cloud GPUs")
    monkeypatch.setattr(runner, "run_job", run_here)
    checkpoint = checkpoints.write(family, tmp_path / "checkpoint")
    recipe = write_recipe(tmp_path / f"{family}.toml", {"edge": (checkpoint, "draft")}, targets={}, weights="original")
    recipe.write_text(recipe.read_text().replace("[shapes.decoder]", f"{L4}[shapes.decoder]"))
    found = made(recipe, tmp_path)
    assert {engine.status for engine in found.deployment.engines} == {"built"}
    told = headers(found, "l4")
    assert {header["component"] for header in told.values()} == KINDS[family]
    assert {tuple(header["gpu_architectures"]) for header in told.values()} == {("sm89",)}


def test_no_kind_of_module_is_left_out() -> None:
    """A projector is part of its tower and a head of its decoder: a recipe may name them, no checkpoint is cut so."""
    assert set().union(*KINDS.values()) == {*get_args(Component)} - {"projector", "lm_head"}
