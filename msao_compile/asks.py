"""What each stage is asked for: the key that names every input, the child's arguments, and the files it leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msao_compile.families.checkpoint import weight_files
from msao_compile.families.conversion import CONVERTED
from msao_compile.graph.opsets import traced
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.schema import Deployment, Dialect, Graph, Module, RuntimeSettings
from msao_compile.places import Places
from msao_compile.runner import Ask
from msao_compile.stages.compose import ModelParts, Object, graph_name
from msao_compile.stages.fit.samples import files as sample_files
from msao_compile.stock import Stock

EXPORT_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript", "onnxruntime", "optimum")
GRAPH_TOOLS = ("onnx", "onnx-ir")
RUN_TOOLS = ("onnxruntime", "numpy")
LINK = {"mbps": 50.0, "rtt_ms": 20.0}
"""What a build fits for; another link's times are reckoned with `msao-compile fit`."""
Component = Mapping[str, Any]


def split(name: str, folder: Path, stock: Stock) -> Ask:
    """Which modules a checkpoint has, and their graphs; reads its config and every weight."""
    recipe = stock.runner.recipe
    dialects: list[Dialect] = sorted({traced(choice.graph_dialect) for choice in recipe.targets.values()})
    exclude = list(recipe.export.exclude)
    fields = {
        "config": stock.digest(folder / "config.json"),
        "weights": stock.digest_all(weight_files(folder)),
        "dialects": dialects,
        "exclude": exclude,
        "tools": versions(EXPORT_TOOLS),
        "code": source_digest("families", "graph", "symbolic.py", "runtime/host", "stages/split.py"),
        **_remote_code(name, folder, stock),
    }
    outputs = {archive_name(dialect): archive_name(dialect) for dialect in dialects} | {CONVERTED: CONVERTED}

    def arguments(workspace: Path) -> dict[str, Any]:
        places = {dialect: str(workspace / archive_name(dialect)) for dialect in dialects}
        return {"checkpoint": str(folder), "exclude": exclude, "trusted": trusts(name, stock), "outputs": places,
                "converted": str(workspace / CONVERTED)}  # fmt: skip

    return Ask("split", name, 2, fields, arguments, outputs)


def archive_name(dialect: Dialect) -> str:
    """The graphs of all modules of one model in one dialect."""
    return f"graphs.{dialect}.zip"


def load(model: ModelParts, component: Component, places: Places, folder: Path, stock: Stock) -> Ask:
    """Those of a module's own weights that are not in the checkpoint as graphs read them, as one data file."""
    entries, size = places.written(component)
    layout = [[entry["name"], entry["digest"], entry["offset"]] for entry in entries]
    tensors = [{key: value for key, value in entry.items() if key != "digest"} for entry in entries]
    fields = {
        "module": component["id"],
        "layout": sha256_bytes(canonical_json(layout)),
        "code": source_digest("families/checkpoint.py", "stages/load.py"),
    }

    def prepare(workspace: Path) -> None:
        if any(entry["source"]["file"] == CONVERTED for entry in entries):
            stock.place(model.archives[CONVERTED].sha256, workspace / CONVERTED)

    def arguments(workspace: Path) -> dict[str, Any]:
        places = {"converted": str(workspace / CONVERTED), "output": str(workspace / "data")}
        return {"checkpoint": str(folder), "tensors": tensors, "size_bytes": size, **places}

    subject = f"{model.name}/{component['component']}"
    return Ask("load", subject, 1, fields, arguments, {"data": "data"}, prepare, disk_bytes=size)


def export(model: ModelParts, component: Component, dialect: Dialect, places: Places, stock: Stock) -> Ask:
    """A module's graph in one dialect, pointed at its weights."""
    name = component["component"]
    layout = places.layout(model, component)
    states = model.split["states"][traced(dialect)]
    capacity = model.kv_capacity if dialect == "scatter" and name == "decoder" else None
    fields = {
        "module": component["id"],
        "dialect": dialect,
        "states": sha256_bytes(canonical_json(states)),
        "kv_capacity": capacity,
        "layout": sha256_bytes(canonical_json(layout)),
        "tools": versions(GRAPH_TOOLS),
        "code": source_digest("graph", "stages/export.py"),
    }
    archive = archive_name(traced(dialect))

    def prepare(workspace: Path) -> None:
        stock.place(model.archives[archive].sha256, workspace / archive)

    def arguments(workspace: Path) -> dict[str, Any]:
        common = {"component": name, "dialect": dialect, "layout": layout, "states": states,
                  "kv_capacity": capacity}  # fmt: skip
        return {**common, "archive": str(workspace / archive), "output": str(workspace / graph_name(name, dialect))}

    graph = graph_name(name, dialect)
    return Ask("export", f"{model.name}/{name} ({dialect})", 2, fields, arguments, {"graph": graph}, prepare)


def parity(
    model: ModelParts,
    folder: Path,
    bounds: Mapping[str, Any],
    draft: Deployment,
    samples: Object | None,
    stock: Stock,
) -> Ask:
    """A model's modules, whole and cuts against its torch original; `samples` are for what has ranges.

    What was asked stays in the store.
    """
    steps = stock.runner.recipe.parity.steps
    entry = draft.model(model.name)
    own = set(entry.components.values())
    graphs = [
        [module.component, graph.dialect, graph.precision, graph.file.sha256]
        for module in draft.modules
        if module.id in own
        for graph in module.graphs
    ]
    fields = {
        "graphs": graphs,
        "host": entry.model_dump(mode="json", exclude={"files"}),
        "config": stock.digest(folder / "config.json"),
        "weights": stock.digest_all(weight_files(folder)),
        "bounds": dict(bounds),
        "samples": None if samples is None else samples.sha256,
        "steps": steps,
        "kv_capacity": model.kv_capacity,
        "tools": versions(EXPORT_TOOLS),
        "code": source_digest("runtime", "families", "recipe/schema.py", "stages/parity.py"),
        **_remote_code(model.name, folder, stock),
    }

    def arguments(workspace: Path) -> dict[str, Any]:
        draft_folder = str(workspace / "draft")
        exclude = list(stock.runner.recipe.export.exclude)
        common = {"model": model.name, "bounds": dict(bounds), "steps": steps, "exclude": exclude}
        common["samples"] = None if samples is None else str(workspace / "samples.npz")
        common["requests"] = str(workspace / "requests.npz")
        return {**common, "folder": draft_folder, "checkpoint": str(folder), "trusted": trusts(model.name, stock)}

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)
        if samples is not None:
            stock.place(samples.sha256, workspace / "samples.npz")

    return Ask("parity", model.name, 2, fields, arguments, {"requests": "requests.npz"}, prepare)


def engine(module: Module, graph: Graph, settings: RuntimeSettings, stock: Stock) -> Ask:
    """A module's graph opened here with the recipe's runtime settings."""
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
        return {"path": str(workspace / place.name), "dialect": graph.dialect, "settings": plain}

    kind = graph.dialect if graph.precision == "fp32" else f"{graph.dialect} {graph.precision}"
    return Ask("build", f"{place.parent.name}/{module.component} ({kind})", 1, fields, arguments, {}, prepare)


def measure(draft: Deployment, stock: Stock) -> Ask:
    """Every route of the deployment, timed."""
    fields = {
        "manifest": sha256_bytes(canonical_json(draft.model_dump(mode="json"))),
        "machine": machine(),
        "tools": versions(RUN_TOOLS),
        "code": source_digest("runtime", "made_up.py", "stages/measure.py"),
    }

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {"folder": str(workspace / "draft")}

    return Ask("measure", "routes", 1, fields, arguments, {}, prepare)


def fit(draft: Deployment, stock: Stock) -> Ask:
    """A task's speculation, sureness and MAS, from the recipe's samples; `draft` has what was measured."""
    chosen = stock.runner.recipe.mas
    assert chosen is not None  # whoever asks has seen it
    own = {"epsilon": chosen.epsilon, "trials": chosen.trials, "seed": chosen.seed, "task": None, **LINK,
           "setting": None}  # fmt: skip
    paths = {"samples": chosen.samples, "held_out": chosen.held_out}
    fields = {
        "manifest": sha256_bytes(canonical_json(draft.model_dump(mode="json"))),
        **{name: None if path is None else stock.digest_all(sample_files(Path(path))) for name, path in paths.items()},
        "settings": own,
        "tools": versions((*RUN_TOOLS, "optuna")),
        "code": source_digest("runtime", "made_up.py", "stages/fit"),
    }

    def prepare(workspace: Path) -> None:
        stock.deploy(workspace / "draft", draft)

    def arguments(workspace: Path) -> dict[str, Any]:
        return {"folder": str(workspace / "draft"), **paths, **own}

    return Ask("fit", draft.speculation[0].task, 1, fields, arguments, {}, prepare)


def trusts(name: str, stock: Stock) -> bool:
    """Whether the recipe allows code that lies in a model's checkpoint."""
    return stock.runner.recipe.models[name].trust_remote_code


def _remote_code(name: str, folder: Path, stock: Stock) -> dict[str, str]:
    """For a key: the Python files of a trusted checkpoint; nothing of others, whose files are never run."""
    return {"remote_code": stock.digest_all(sorted(folder.glob("*.py")))} if trusts(name, stock) else {}


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
