"""Run a module's stored cases, on its engine or on the stand-in, and time them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.errors import MissingTool, StageError
from msao_compile.runtime.kit.plan import Case, Module, State
from msao_compile.runtime.ladder import STAND_IN

WARM_UP, RUNS = 2, 7
ENGINE = "engine"
RUNNERS = (ENGINE, STAND_IN)
"""`engine`: the engine by the library that built it. The stand-in runs the graph, for tests of these very phases."""


@dataclass(frozen=True)
class Settings:
    """As `manifest.schema.RuntimeSettings`."""

    threads: int = 0
    arena: bool = True
    warm_up: int = 0


@dataclass(frozen=True)
class EngineFile:
    """As `runtime.backends.base.EngineFile`, which needs more than a device has."""

    path: Path
    dialect: str
    settings: Settings
    states: tuple[State, ...]


def opened(runner: str, module: Module, engine: Path) -> Any:
    """An object with `run`, or of a decoder with `new_cache` and `step`, as `runtime.backends.base` has them.

    Raises:
        MissingTool: there is no driver or library to run it with.
        StageError, DeploymentError: the library refuses it.
    """
    if runner == STAND_IN:
        from msao_compile.runtime.kit import stand_in

        return stand_in.opened(module)
    from msao_compile.runtime.backends import cuda

    driver = cuda.probe()
    if isinstance(driver, str):
        raise MissingTool(driver)
    from msao_compile.runtime.backends import trt

    file: Any = EngineFile(engine, module.dialect, Settings(), module.states)
    return (trt.open_decoder if module.states else trt.open_engine)(module.backend, file)


def run_case(runner: Any, module: Module, case: Case, output: Path) -> None:
    """Run one case and keep its outputs under the names of those that were stored.

    Raises:
        StageError: the engine fails, or gives a number that is not finite.
    """
    with np.load(case.file) as stored:
        found = _run(runner, module, case, stored)
    for name, value in found.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StageError(f"{module.name}, case {case.name}: {name} has numbers that are not finite")
    np.savez(output, **found)  # type: ignore[arg-type]


def timed(runner: Any, module: Module, case: Case) -> dict[str, dict[str, float]]:
    """Warm times of a case in milliseconds: `run`, or of a decoder `prefill` and one `step` after it."""
    with np.load(case.file) as stored:
        feeds = _feeds(case, stored)
    times: dict[str, list[float]] = {}
    for _ in range(WARM_UP + RUNS):
        for name, elapsed in _once(runner, module, case, feeds).items():
            times.setdefault(name, []).append(elapsed)
    return {name: _spread(values[WARM_UP:]) for name, values in times.items()}


def _once(runner: Any, module: Module, case: Case, feeds: list[dict[str, np.ndarray]]) -> dict[str, float]:
    if not case.steps:
        return {"run": _elapsed(lambda: runner.run(feeds[0]))}
    cache = runner.new_cache(module.kv_capacity, _batch(feeds[0]))
    prefill = _elapsed(lambda: runner.step(feeds[0], cache))
    steps = [_elapsed(lambda feed=feed: runner.step(feed, cache)) for feed in feeds[1:]]
    return {"prefill": prefill, "step": statistics.median(steps)} if steps else {"prefill": prefill}


def _elapsed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def _spread(values: list[float]) -> dict[str, float]:
    found = {"median_ms": statistics.median(values), "min_ms": min(values), "max_ms": max(values)}
    return {**{name: round(value, 4) for name, value in found.items()}, "runs": len(values)}


def _run(runner: Any, module: Module, case: Case, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    feeds = _feeds(case, stored)
    if not case.steps:
        return {f"out.{name}": np.array(value) for name, value in runner.run(feeds[0]).items()}
    cache = runner.new_cache(module.kv_capacity, _batch(feeds[0]))
    return {f"{index}.out.logits": np.array(runner.step(feed, cache)) for index, feed in enumerate(feeds)}


def _feeds(case: Case, stored: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    prefixes = [f"{index}.in." for index in range(case.steps)] or ["in."]
    return [
        {name.partition("in.")[2]: stored[name] for name in stored if name.startswith(prefix)} for prefix in prefixes
    ]


def _batch(feed: Mapping[str, np.ndarray]) -> int:
    return int(feed["inputs_embeds"].shape[0])
