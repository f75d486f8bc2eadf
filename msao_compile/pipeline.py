"""The stages in order: read this first.

    read recipe → find hub checkpoints → split each model → load and export each distinct module
                → bring it into the targets' precisions → parity of each model → build engines → measure the routes
                → fit what is shared by edge and cloud → take in receipts of devices → emit the deployment

Every stage is asked of the store first; what is not there runs in a child process and is kept. A no-op build imports
neither torch nor onnx.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msao_compile import hub
from msao_compile.engine_steps import Walk
from msao_compile.errors import InputError
from msao_compile.outlook import Holding, Outlook
from msao_compile.recipe.read import read_recipe
from msao_compile.recipe.schema import Recipe
from msao_compile.runner import Built, Event, Options, Runner, Step
from msao_compile.sketch import Sketch, is_wanted, sketch

__all__ = ["Built", "Event", "Options", "Plan", "Sketch", "Step", "build", "draft", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a build would do, what is to be expected of its engines, and whether targets can hold the models."""

    steps: tuple[Step, ...]
    engines: tuple[Outlook, ...]
    holdings: tuple[Holding, ...]


def plan(recipe_path: Path, options: Options) -> Plan | Sketch:
    """What `build` would run, reuse or defer, and why; writes nothing but the lock of hub checkpoints.

    Where a checkpoint has a config.json and no weights yet: what its modules are and need, and what can hold them.

    Raises:
        InputError: the recipe or a checkpoint cannot be used.
    """
    recipe = hub.resolve(read_recipe(recipe_path), recipe_path, options.frozen, weights=False)
    _check_places(recipe, options, os.R_OK)
    if is_wanted(recipe):
        return sketch(recipe)
    runner = Runner(recipe, options, tell=None)
    steps = Walk(runner)
    if steps.split() and steps.export() and steps.precisions() and steps.parity():
        steps.engines()
        steps.measure()
        steps.fit()
    elif recipe.mas is not None:
        runner.wait_for("fit", "the task that speculates", "follows measure")
    return Plan(tuple(runner.steps), *steps.outlook())


def build(recipe_path: Path, options: Options, tell: Callable[[Event], None]) -> Built:
    """Run every stage that is not already in the store, then emit the deployment.

    Raises:
        InputError: the recipe or a checkpoint cannot be used. StageError: a stage failed. GateError: parity failed, or
            a memory is too small.
    """
    started = time.perf_counter()
    recipe = hub.resolve(read_recipe(recipe_path), recipe_path, options.frozen, weights=True)
    _check_places(recipe, options, os.W_OK)
    runner = Runner(recipe, options, tell, recipe_path)
    with runner.store.in_use():
        steps = Walk(runner)
        steps.split()
        steps.export()
        steps.precisions()
        steps.parity()
        steps.engines()
        steps.measure()
        steps.fit()
        deployment = steps.deployment()
        folder = options.out / runner.recipe.name
        for receipt in reversed(options.receipts):  # of one target, the last that is given is the newest
            deployment = steps.stock.accept(deployment, receipt, receipt.parent, steps.bounds)
        deployment = steps.stock.accept_again(deployment, folder, steps.bounds)
        steps.stock.deploy(folder, deployment)
        runner.inputs.settle()
    copied = steps.stock.copied(folder, deployment)
    return Built(folder, deployment, runner.ran, runner.reused, time.perf_counter() - started, copied)


@contextmanager
def draft(
    recipe_path: Path, options: Options, tell: Callable[[Event], None], compare: bool = True
) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A deployment of the graphs that a recipe asks for, whatever parity says of them, and the requests that it
    compared each model on, none without `compare`; gone after the block.

    What the store has is not made again.

    Raises:
        InputError: the recipe or a checkpoint cannot be used. StageError: a stage failed.
    """
    recipe = hub.resolve(read_recipe(recipe_path), recipe_path, options.frozen, weights=True)
    _check_places(recipe, options, os.W_OK)
    runner = Runner(recipe, options, tell)
    with runner.store.in_use(), runner.store.workspace() as folder:
        steps = Walk(runner)
        steps.split()
        steps.export()
        steps.precisions()
        if compare:
            steps.compare()
        steps.stock.deploy(folder / recipe.name, steps.graphs())
        requests = {name: folder / "requests" / f"{name}.npz" for name in steps.requests}
        for name, file in requests.items():
            steps.stock.place(steps.requests[name].sha256, file)
        runner.inputs.settle()
        yield folder / recipe.name, requests


def _check_places(recipe: Recipe, options: Options, mode: int) -> None:
    """Before the first stage, because the deployment is written after the last one.

    Raises:
        InputError: a folder that a build writes to cannot be one.
    """
    for option, folder in (("--out", options.out / recipe.name), ("--store", options.store)):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, mode)):
            raise InputError(f"{option}: {there} is no folder that can be used; choose another place")
