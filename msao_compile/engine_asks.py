"""What is asked for to bring modules into other precisions and to build engines of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msao_compile import asks
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.schema import BuildOrder, Graph, Module, Precision
from msao_compile.runner import Ask
from msao_compile.runtime.backends.cuda import probe
from msao_compile.stages.compose import graph_name
from msao_compile.stock import Stock

LIBRARIES = {"trt": ("tensorrt",), "trt_rtx": ("tensorrt_rtx",)}


def quantize(
    home: str, module: Module, graph: Graph, precision: Precision, ranges: Mapping[str, float], stock: Stock
) -> Ask:
    """A module's fp32 graph in another precision, with a data file of its own."""
    islands = list(stock.runner.recipe.islands.get(module.component, ()))  # type: ignore[call-overload]
    name = graph_name(module.component, graph.dialect, precision)
    plan = {
        "precision": precision,
        "dialect": graph.dialect,
        "islands": islands,
        "states": [state.model_dump(mode="json") for state in graph.states],
        "ranges": dict(ranges),
    }
    fields = {
        "files": sorted(reference.sha256 for reference in (graph.file, *graph.data)),
        "plan": sha256_bytes(canonical_json(plan)),
        "precision": precision,
        "islands": islands,
        "tools": asks.versions(asks.GRAPH_TOOLS),
        "code": asks.source_digest("graph/precision", "stages/quantize.py"),
    }

    def prepare(workspace: Path) -> None:
        _place(graph, workspace, stock)

    def arguments(workspace: Path) -> dict[str, Any]:
        source = workspace / Path(graph.file.path).name
        return {"source": str(source), "output": str(workspace / "made" / name), "plan": plan}

    outputs = {"graph": f"made/{name}", "data": f"made/{name}.data"}
    size = sum(reference.size_bytes for reference in graph.data)
    subject = f"{home}/{module.component} ({graph.dialect} {precision})"
    return Ask("quantize", subject, 1, fields, arguments, outputs, prepare, disk_bytes=min(size, module.weight_bytes))


def engine(home: str, module: Module, graph: Graph, target: str, order: BuildOrder, stock: Stock) -> Ask:
    """An engine of one graph, built ahead of time for other machines or for the GPU of this one."""
    plain = order.model_dump(mode="json")
    cache = stock.runner.recipe.targets[target].timing_cache
    facts = {
        "module": module.id,
        "component": module.component,
        "precision": graph.precision,
        "dialect": graph.dialect,
        "graph_sha256": graph.file.sha256,
        "weights_sha256": sha256_bytes(canonical_json(sorted(reference.sha256 for reference in graph.data))),
    }
    fields = {
        "files": sorted(reference.sha256 for reference in (graph.file, *graph.data)),
        "order": plain,
        "library": asks.versions(LIBRARIES[order.backend]),
        "device": None if order.compute_capabilities else gpu(),
        "code": asks.source_digest("runtime/backends", "stages/engine.py"),
    }

    def prepare(workspace: Path) -> None:
        _place(graph, workspace, stock)

    def arguments(workspace: Path) -> dict[str, Any]:
        source = workspace / Path(graph.file.path).name
        return {
            "graph": str(source),
            "order": plain,
            "facts": {**facts, "key": asked.key.digest},
            "output": str(workspace / "engine"),
            "timing_cache": cache,
        }

    subject = f"{home}/{module.component} for {target}"
    # An engine holds its weights, and about as much again where kernels want them in another layout.
    size = 2 * _weights(graph)
    asked = Ask("engine", subject, 1, fields, arguments, {"engine": "engine"}, prepare, disk_bytes=size)
    return asked


def gpu() -> dict[str, Any]:
    """What an engine for this machine's own GPU depends on; empty where there is none."""
    found = probe()
    return {} if isinstance(found, str) else asdict(found.device)


def _weights(graph: Graph) -> int:
    return sum(reference.size_bytes for reference in graph.data)


def _place(graph: Graph, workspace: Path, stock: Stock) -> None:
    for reference in (graph.file, *graph.data):
        stock.place(reference.sha256, workspace / Path(reference.path).name)
