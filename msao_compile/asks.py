"""What each stage is asked for: the key that names every input, the child's arguments, and the files it leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msao_compile.families.checkpoint import weight_files
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.schema import Deployment, Dialect, Module, RuntimeSettings
from msao_compile.runner import Ask
from msao_compile.stages.compose import Exported, ModelParts, data_name, graph_name
from msao_compile.stock import Stock

EXPORT_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript", "onnxruntime", "optimum")
RUN_TOOLS = ("onnxruntime", "numpy")
Component = Mapping[str, Any]


def split(name: str, folder: Path, stock: Stock) -> Ask:
    """Which modules a checkpoint has; reads its config and every weight."""
    fields = {
        "config": stock.digest(folder / "config.json"),
        "weights": stock.digest_all(weight_files(folder)),
        "tools": versions(EXPORT_TOOLS),
        "code": source_digest("families", "stages/split.py"),
    }

    def arguments(_: Path) -> dict[str, Any]:
        return {"checkpoint": str(folder)}

    return Ask("split", name, 1, fields, arguments)


def load(model: ModelParts, component: Component, folder: Path) -> Ask:
    """A module's own weights as one data file."""
    entries = component["tensors"]
    layout = [[entry["name"], entry["digest"], entry.get("offset"), entry.get("borrowed")] for entry in entries]
    tensors = [{key: value for key, value in entry.items() if key != "digest"} for entry in entries]
    size = component["weight_bytes"]
    fields = {
        "module": component["id"],
        "layout": sha256_bytes(canonical_json(layout)),
        "code": source_digest("families/checkpoint.py", "stages/load.py"),
    }

    def arguments(workspace: Path) -> dict[str, Any]:
        return {"checkpoint": str(folder), "tensors": tensors, "size_bytes": size, "output": str(workspace / "data")}

    return Ask(
        "load", f"{model.name}/{component['component']}", 1, fields, arguments, {"data": "data"}, disk_bytes=size
    )


def export(
    model: ModelParts,
    component: Component,
    dialect: Dialect,
    folder: Path,
    exported: Mapping[str, Exported],
    stock: Stock,
) -> Ask:
    """A module's graph in one dialect, run once beside its weights."""
    name = component["component"]
    by_name = {other["component"]: other for other in model.split["components"]}
    layout = {entry["name"]: _place(entry, component, by_name) for entry in component["tensors"]}
    needed = {place["file"]: by_name[place["file"].removesuffix(".onnx.data")]["id"] for place in layout.values()}
    fields = {
        "module": component["id"],
        "dialect": dialect,
        "layout": sha256_bytes(canonical_json(layout)),
        "tools": versions(EXPORT_TOOLS),
        "code": source_digest("graph", "families", "stages/export.py"),
    }

    def prepare(workspace: Path) -> None:
        for file, module in needed.items():
            data = exported[module].data
            if data is not None:
                stock.place(data.sha256, workspace / file)

    def arguments(workspace: Path) -> dict[str, Any]:
        output = str(workspace / graph_name(name, dialect))
        common = {"checkpoint": str(folder), "component": name, "dialect": dialect}
        return {**common, "layout": layout, "threads": stock.runner.recipe.runtime.threads or 0, "output": output}

    return Ask(
        "export",
        f"{model.name}/{name} ({dialect})",
        1,
        fields,
        arguments,
        {"graph": graph_name(name, dialect)},
        prepare,
    )


def parity(model: ModelParts, folder: Path, bounds: Mapping[str, Any], draft: Deployment, stock: Stock) -> Ask:
    """A model's modules, whole and cuts against its torch original."""
    steps = stock.runner.recipe.parity.steps
    entry = draft.model(model.name)
    own = set(entry.components.values())
    graphs = [
        [module.component, graph.dialect, graph.file.sha256]
        for module in draft.modules
        if module.id in own
        for graph in module.graphs
    ]
    fields = {
        "graphs": graphs,
        "host": [entry.name, entry.family, entry.image_token_id, dict(entry.family_facts)],
        "config": stock.digest(folder / "config.json"),
        "weights": stock.digest_all(weight_files(folder)),
        "bounds": dict(bounds),
        "steps": steps,
        "kv_capacity": model.kv_capacity,
        "tools": versions(EXPORT_TOOLS),
        "code": source_digest("runtime", "families", "recipe/schema.py", "stages/parity.py"),
    }

    def arguments(workspace: Path) -> dict[str, Any]:
        draft_folder = str(workspace / "draft")
        common = {"model": model.name, "bounds": dict(bounds), "steps": steps}
        return {**common, "folder": draft_folder, "checkpoint": str(folder)}

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)

    return Ask("parity", model.name, 1, fields, arguments, {}, prepare)


def engine(module: Module, dialect: Dialect, settings: RuntimeSettings, stock: Stock) -> Ask:
    """A module's graph opened here with the recipe's runtime settings."""
    graph = next(graph for graph in module.graphs if graph.dialect == dialect)
    files = {reference.sha256: Path(reference.path).name for reference in (graph.file, *graph.data)}
    plain = settings.model_dump(mode="json")
    fields = {
        "files": sorted(files),
        "settings": plain,
        "machine": machine(),
        "tools": versions(RUN_TOOLS),
        "code": source_digest("runtime/backends", "stages/build.py"),
    }
    place = Path(graph.file.path)

    def prepare(workspace: Path) -> None:
        for sha256, name in files.items():
            stock.place(sha256, workspace / name)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {"path": str(workspace / place.name), "dialect": dialect, "settings": plain}

    return Ask("build", f"{place.parent.name}/{module.component} ({dialect})", 1, fields, arguments, {}, prepare)


def measure(draft: Deployment, stock: Stock) -> Ask:
    """Every route of the deployment, timed."""
    fields = {
        "manifest": sha256_bytes(draft.model_dump_json().encode()),
        "machine": machine(),
        "tools": versions(RUN_TOOLS),
        "code": source_digest("runtime", "stages/measure.py"),
    }

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {"folder": str(workspace / "draft")}

    return Ask("measure", "routes", 1, fields, arguments, {}, prepare)


def _place(entry: Mapping[str, Any], component: Component, by_name: Mapping[str, Component]) -> dict[str, Any]:
    """Where a tensor's bytes lie: in the module's own data file, or in that of the module it borrows from."""
    if "borrowed" not in entry:
        return {"file": data_name(component["component"]), "offset": entry["offset"], "shape": entry["shape"]}
    owner, name = entry["borrowed"]
    held = next(other for other in by_name[owner]["tensors"] if other["name"] == name)
    return _place(held, by_name[owner], by_name) | {"shape": entry["shape"]}


@cache
def machine() -> dict[str, str | int]:
    """What timings and opened engines depend on here: a store that was carried to another machine proves nothing."""
    system = os.uname()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    # Without a model name (many ARM cores) the numbers of implementer and part stand for it.
    named = ("model name", "CPU implementer", "CPU part")
    cpu = sorted({line.replace("\t", "") for line in lines if line.startswith(named)})
    return {"cpu": "; ".join(cpu), "platform": f"{system.sysname} {system.machine}", "cores": os.cpu_count() or 0}


@cache
def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def source_digest(*places: str) -> str:
    """Our own code is an input like any other: a changed line rebuilds what it made."""
    root = Path(__file__).parent
    files = [
        path for place in places for path in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    ]
    contents = [[path.relative_to(root).as_posix(), sha256_bytes(path.read_bytes())] for path in sorted(files)]
    return sha256_bytes(canonical_json(contents))
