"""Targets in several precisions and dialects: what is built here, what is left to the device, and what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from building import Workshop, write_recipe

from msao_compile.errors import InputError, MissingTool, RecipeError
from msao_compile.manifest.schema import Deployment, Engine
from msao_compile.pipeline import Plan, build, plan
from msao_compile.runner import Event, Options, Step
from msao_compile.runtime.backends import engine_file

TARGETS = """
[targets.cpu]
device = "local-cpu"
precision = { decoder = "int4" }
prefer = "size"
[targets.l4]
device = "nvidia-l4"
also_for = ["nvidia-a10"]
dialect = "scatter"
precision = "fp16"
level = "draft"
[targets.orin]
device = "jetson-agx-orin-32gb"
precision = { vision_encoder = "int8", embed_tokens = "fp16", decoder = "fp16" }
[ranges]
synthetic = true
"""


@pytest.fixture
def recipe(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """One tiny model for a CPU, a cloud GPU and a Jetson."""
    pytest.importorskip("tensorrt_rtx", reason="builds engines of cloud GPUs")
    path = write_recipe(tmp_path / "several.toml", {"edge": (checkpoint("idefics3"), "draft")}, targets={})
    text = path.read_text().replace("steps = 3", "int4 = { min_cosine = 0.5 }\nsteps = 3")
    path.write_text(text.replace("[shapes", f"{TARGETS}[shapes"))
    return path


def quiet(event: Event) -> None:
    """Nobody listens."""


def of(deployment: Deployment, target: str) -> dict[str, Engine]:
    """A target's engines by component."""
    return {
        deployment.module(engine.module).component: engine
        for engine in deployment.engines if engine.target == target
    }  # fmt: skip


def test_each_target_gets_what_it_asks_for_and_says_how_far_it_was_proven(
    workshop: Workshop, recipe: Path, tmp_path: Path
) -> None:
    options = dataclasses.replace(workshop.options, out=tmp_path / "deployments")
    made = build(recipe, options, quiet)
    cpu, l4, orin = (of(made.deployment, name) for name in ("cpu", "l4", "orin"))

    assert {name: engine.precision for name, engine in cpu.items()} == {
        "vision_encoder": "fp32", "embed_tokens": "fp32", "decoder": "int4",
    }  # fmt: skip
    assert {engine.status for engine in cpu.values()} == {"parity"}
    assert "ms in int4" in (cpu["decoder"].reason or "")

    assert {engine.status for engine in l4.values()} == {"built"}
    assert all("neither run nor compared" in (engine.reason or "") for engine in l4.values())
    assert l4["decoder"].file is not None
    header = engine_file.read_header(made.folder / l4["decoder"].file.path, verify=True)
    assert header["gpu_architectures"] == ["sm86", "sm89"]
    assert header["module"] == l4["decoder"].module
    assert [profile["name"] for profile in header["order"]["profiles"]] == ["prefill", "decode"]
    graph = next(one for one in made.deployment.module(l4["decoder"].module).graphs
                 if (one.dialect, one.precision) == ("scatter", "fp16"))  # fmt: skip
    assert {state.update for state in graph.states} == {"in_place"}
    assert {state.dtype for state in graph.states} == {"float16"}

    assert {engine.status for engine in orin.values()} == {"deferred"}
    assert all(engine.order is not None and engine.file is None for engine in orin.values())
    assert (orin["vision_encoder"].precision, orin["decoder"].precision) == ("int8", "fp16")

    again = build(recipe, options, quiet)
    assert (again.ran, again.deployment) == (0, made.deployment)
    assert {step.state for step in planned(recipe, options)} == {"reuse", "deferred"}
    only_one_module_is_quantised_again(recipe, options)


def planned(recipe: Path, options: Options) -> tuple[Step, ...]:
    """What would run."""
    found = plan(recipe, options)
    assert isinstance(found, Plan)
    return found.steps


def only_one_module_is_quantised_again(recipe: Path, options: Options) -> None:
    """An island of fp32 changes its own module and nothing else of another target."""
    text = recipe.read_text()
    recipe.write_text(text + '[islands]\nvision_encoder = ["model.vision_model.encoder.layers.0"]\n')
    steps = planned(recipe, options)
    ran = {step.subject for step in steps if step.state == "run" and step.stage == "quantize"}
    assert ran == {"edge/vision_encoder (portable int8)", "edge/vision_encoder (scatter fp16)"}
    recipe.write_text(text)


def test_a_plan_before_anything_ran_follows_the_stages(workshop: Workshop, recipe: Path, tmp_path: Path) -> None:
    fresh = dataclasses.replace(workshop.options, store=tmp_path / "store")
    steps = planned(recipe, fresh)
    assert next(step.stage for step in steps) == "split"
    later = [step for step in steps if step.stage != "split"]
    assert all(step.reasons[0].startswith("after the split") for step in later)
    assert [step.subject for step in later if step.state == "deferred"] == ["every module for orin"]
    assert "decoder (fused int4)" in {step.subject for step in later if step.stage == "quantize"}


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ('precision = { decoder = "int4" }', 'precision = "fp16"', RecipeError, "slower than fp32 on a CPU"),
        ('dialect = "scatter"', 'dialect = "fused"', RecipeError, "runs on CPUs only"),
        ('also_for = ["nvidia-a10"]', 'also_for = ["nvidia-h200"]', RecipeError, "not built ahead of time"),
        ('also_for = ["nvidia-a10"]', 'also_for = ["nvidia-l4"]', RecipeError, "is the target's own device"),
        ("[ranges]\nsynthetic = true\n", "", RecipeError, "int8 needs the ranges of activations"),
        ("synthetic = true", 'synthetic = true\nsamples = "x"', RecipeError, "either samples or synthetic"),
        ("synthetic = true", 'samples = "x"', RecipeError, "ranges.samples: .*x cannot be read"),
        ("[ranges]", '[islands]\ndecoder = ["layers.99"]\n[ranges]', RecipeError, "is no block of it; did you mean"),
    ],
)
def test_what_a_device_cannot_have_is_refused_with_what_to_change(
    workshop: Workshop, recipe: Path, old: str, new: str, error: type[InputError], words: str
) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(error, match=words):
        build(recipe, workshop.options, quiet)


def test_without_the_library_that_builds_them_a_cloud_target_names_the_extra(
    workshop: Workshop, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msao_compile.chosen.find_spec", lambda name: None)
    with pytest.raises(MissingTool, match=r"msao-compile\[rtx\]"):
        plan(recipe, workshop.options)
