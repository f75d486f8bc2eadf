"""Which targets a build is for, and whether this version and this machine can serve them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from msao_compile.errors import MissingTool, RecipeError
from msao_compile.manifest.schema import Precision
from msao_compile.manifest.variants import RANGED
from msao_compile.recipe.asked import refuse_unknown
from msao_compile.recipe.samples import read_samples
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import Target, find
from msao_compile.runner import Runner
from msao_compile.runtime.backends.trt_build import supported
from msao_compile.stages.build import library

ON_CPUS = ("fp32", "int8", "int4")
"""Precisions that ONNX Runtime's CPU kernels are fast in."""


def chosen(runner: Runner) -> dict[str, TargetChoice]:
    """The recipe's targets, or those that were asked for.

    Raises:
        InputError: an unknown target. RecipeError: a target asks for what its device does not do. MissingTool: the
            library that builds its engines is not installed.
    """
    recipe = runner.recipe
    wanted = runner.options.targets or tuple(recipe.targets)
    for name in wanted:
        refuse_unknown("target", name, recipe.targets, "the recipe has")
        _refuse(name, recipe.targets[name])
    if recipe.ranges is not None and recipe.ranges.samples is not None:
        read_samples(Path(recipe.ranges.samples))
    found = {name: recipe.targets[name] for name in wanted}
    if recipe.ranges is None:
        _refuse_without_ranges(found)
    return found


def _refuse_without_ranges(targets: Mapping[str, TargetChoice]) -> None:
    for name, choice in targets.items():
        ranged = sorted(precisions_of(choice) & set(RANGED))
        if ranged and find(choice.device).platform_kind != "cpu":
            raise RecipeError(
                f"targets.{name}.precision: {ranged[0]} needs the ranges of activations: name real samples in [ranges] "
                "samples, or set synthetic = true there to try a build"
            )


def precisions_of(choice: TargetChoice) -> set[Precision]:
    """Every precision that a target names."""
    return {choice.precision} if isinstance(choice.precision, str) else set(choice.precision.values())


def ahead_of_time(device: Target) -> bool:
    """Whether its engines can be built without the device."""
    return device.engine_build == "tensorrt_rtx ahead-of-time"


def _refuse(name: str, choice: TargetChoice) -> None:
    device = find(choice.device)
    precisions = precisions_of(choice)
    if device.platform_kind == "cpu":
        if slow := sorted(precisions - set(ON_CPUS)):
            raise RecipeError(
                f"targets.{name}.precision: {slow[0]} is slower than fp32 on a CPU; take fp32, int8 or int4"
            )
        if choice.graph_dialect != "fused" and precisions != {"fp32"}:
            raise RecipeError(
                f'targets.{name}.dialect: quantised modules of a CPU are "fused", not "{choice.graph_dialect}"'
            )
    elif choice.graph_dialect == "fused":
        raise RecipeError(f'targets.{name}.dialect: "fused" runs on CPUs only; take "portable" or "scatter"')
    if choice.jetpack is not None and choice.jetpack not in device.jetpack:
        known = " or ".join(device.jetpack) or "none: it is no Jetson"
        raise RecipeError(f'targets.{name}.jetpack: "{choice.jetpack}" is not known of {choice.device}; known: {known}')
    for kind in sorted(precisions):
        for one in (device, *map(find, choice.also_for)):
            lacking = None if one.sm is None else supported(kind, one.sm, library(device))
            if lacking is not None:
                raise RecipeError(
                    f"targets.{name}.precision: {one.target_id} has no {kind}: {lacking}; choose fp16, or leave this "
                    "target out"
                )
    if choice.device in choice.also_for:
        raise RecipeError(
            f"targets.{name}.also_for: {choice.device} is the target's own device, whose engines it gets anyway; take "
            "it out of this list"
        )
    for other in choice.also_for:
        if not (ahead_of_time(device) and ahead_of_time(find(other))):
            raise RecipeError(
                f"targets.{name}.also_for: engines of {choice.device} and {other} are not built ahead of time, so one "
                "file cannot serve both; give each a target of its own"
            )
    if ahead_of_time(device) and find_spec("tensorrt_rtx") is None:
        raise MissingTool(
            f"targets.{name}: engines for {choice.device} are built with TensorRT-RTX, which is not installed: "
            "pip install 'msao-compile[rtx]', or build the others with --target"
        )
