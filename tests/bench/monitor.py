"""What counting progress costs a build: one engine, built in turn with nobody counting, counted, and listened to."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.backends import trt_build
from msao_compile.runtime.loader import read_manifest

RUNS = 7


@dataclass(frozen=True)
class Cost:
    """Seconds of one way to build, and the sizes of the plans that came out."""

    way: str
    median_s: float
    min_s: float
    max_s: float
    plan_bytes: tuple[int, ...]


def costs(folder: Path, target: str, component: str, runs: int = RUNS) -> list[Cost]:
    """Build the largest engine of a target's component `runs` times each way, after one build that is not counted."""
    graph, order, facts = ordered(folder, read_manifest(folder), target, component)
    ways: dict[str, Callable[[Path], dict[str, Any]]] = {
        "no monitor": lambda file: _silent(graph, order, file, facts),
        "counted": lambda file: trt_build.build(graph, order, file, facts),
        "counted and told 4 times a second": lambda file: trt_build.build(
            graph, order, file, facts, lambda record: None
        ),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, set[int]] = {way: set() for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(runs + 1):
            for way, build in ways.items():
                start = time.perf_counter()
                found = build(Path(scratch) / "engine")
                if number:
                    seconds[way].append(time.perf_counter() - start)
                    sizes[way].add(found["plan_bytes"])
    return [
        Cost(way, statistics.median(took), min(took), max(took), tuple(sorted(sizes[way])))
        for way, took in seconds.items()
    ]


def _silent(graph: Path, order: dict[str, Any], file: Path, facts: dict[str, Any]) -> dict[str, Any]:
    with patch.object(trt_build, "_monitor", lambda lib, progress: None):
        return trt_build.build(graph, order, file, facts)


def ordered(
    folder: Path, deployment: Deployment, target: str, component: str
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Graph, order and facts of a target's engine of most weights."""
    engines = [
        (deployment.module(engine.module), engine)
        for engine in deployment.engines
        if engine.target == target and deployment.module(engine.module).component == component
    ]
    module, engine = max(engines, key=lambda pair: pair[0].weight_bytes)
    assert engine.order is not None  # it is for a GPU
    graph = next(one for one in module.graphs if (one.dialect, one.precision) == (engine.dialect, engine.precision))
    facts = {"module": module.id, "component": component, "precision": engine.precision, "dialect": engine.dialect,
             "graph_sha256": graph.file.sha256, "key": graph.file.sha256}  # fmt: skip
    return folder / graph.file.path, engine.order.model_dump(mode="json"), facts
