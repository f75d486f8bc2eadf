"""What is asked for to bring modules into other precisions and to build engines of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msao_compile import asks
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.schema import BuildOrder, Deployment, Dialect, Graph, Module, Precision, RuntimeSettings
from msao_compile.recipe.samples import read_samples
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
    subject = f"{home}/{module.component} ({graph.dialect} {precision})"
    size = weights(module, graph)
    return Ask("quantize", subject, 1, fields, arguments, outputs, prepare, disk_bytes=size)


def ranges(model: str, dialect: Dialect, draft: Deployment, modules: Collection[str], stock: Stock) -> Ask:
    """The largest activations of a model's fp32 graphs over the recipe's samples."""
    chosen = stock.runner.recipe.ranges
    assert chosen is not None  # whoever asks has looked
    samples = None if chosen.samples is None else Path(chosen.samples)
    held = draft.model(model).components
    own = sorted(component for component, module in held.items() if module in modules)
    target = next(
        engine.target
        for engine in draft.engines
        if engine.dialect == dialect
        and engine.precision == "fp32"
        and engine.module in draft.model(model).components.values()
    )
    fields = {
        "graphs": sorted(
            [module.component, graph.file.sha256]
            for module in draft.modules if module.id in held.values()
            for graph in module.graphs if (graph.dialect, graph.precision) == (dialect, "fp32")
        ),
        "host": draft.model(model).model_dump(mode="json", exclude={"files"}),
        "components": own,
        "samples": None if samples is None else _sample_digest(samples, stock),
        "limit": chosen.limit,
        "tools": asks.versions(asks.RUN_TOOLS),
        "code": asks.source_digest("runtime", "graph/precision", "stages/ranges.py"),
    }  # fmt: skip

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {
            "folder": str(workspace / "draft"), "model": model, "target": target, "dialect": dialect,
            "components": own, "samples": chosen.samples, "limit": chosen.limit,
            "output": str(workspace / "apart.npz"),
        }  # fmt: skip

    return Ask("ranges", model, 1, fields, arguments, {"apart": "apart.npz"}, prepare)


def _sample_digest(path: Path, stock: Stock) -> str:
    """Of the file and every picture that it names."""
    return stock.digest_all([path, *sorted({picture for _, picture in read_samples(path)})])


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
            "weight_bytes": weights(module, graph),
        }

    subject = f"{home}/{module.component} for {target}"
    asked = Ask("engine", subject, 1, fields, arguments, {"engine": "engine"}, prepare)
    return asked


def gpu() -> dict[str, Any]:
    """What an engine for this machine's own GPU depends on; empty where there is none."""
    found = probe()
    return {} if isinstance(found, str) else asdict(found.device)


def weigh(
    home: str,
    module: Module,
    variant: tuple[Dialect, Precision],
    shapes: Mapping[str, list[int]],
    settings: RuntimeSettings,
    stock: Stock,
) -> Ask:
    """A quantised module and its fp32 sibling, timed in turn on this machine."""
    dialect, kind = variant
    graphs = {graph.precision: graph for graph in module.graphs if graph.dialect == dialect}
    pair = {precision: graphs[precision] for precision in ("fp32", kind)}
    capacity = stock.runner.recipe.shapes.kv_capacity
    plain = settings.model_dump(mode="json")
    fields = {
        "files": sorted(reference.sha256 for graph in pair.values() for reference in (graph.file, *graph.data)),
        "shapes": dict(shapes),
        "settings": plain,
        "kv_capacity": capacity,
        "machine": asks.machine(),
        "tools": asks.versions(asks.RUN_TOOLS),
        "code": asks.source_digest("runtime/backends", "stages/weigh.py"),
    }

    def prepare(workspace: Path) -> None:
        for graph in pair.values():
            _place(graph, workspace, stock)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {
            "paths": {name: str(workspace / Path(graph.file.path).name) for name, graph in pair.items()},
            "states": {name: [one.model_dump(mode="json") for one in graph.states] for name, graph in pair.items()},
            "component": module.component, "dialect": dialect, "settings": plain, "capacity": capacity,
            "shapes": dict(shapes),
        }  # fmt: skip

    return Ask("weigh", f"{home}/{module.component} ({dialect} {kind})", 1, fields, arguments, {}, prepare)


def weights(module: Module, graph: Graph) -> int:
    """Bytes of a module's weights as a graph holds them; of a checkpoint's files the graph reads its own part only."""
    return min(sum(reference.size_bytes for reference in graph.data), module.weight_bytes)


def _place(graph: Graph, workspace: Path, stock: Stock) -> None:
    for reference in (graph.file, *graph.data):
        stock.place(reference.sha256, workspace / Path(reference.path).name)
