"""Pack a kit: what a target's device needs to build, check and certify its engines by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from msao_compile.errors import DeploymentError
from msao_compile.manifest.evidence import ParityEvidence
from msao_compile.manifest.schema import Deployment, Engine, FileRef
from msao_compile.recipe.schema import DEFAULT_BOUNDS
from msao_compile.runtime.kit.plan import FORMAT, PLAN_NAME
from msao_compile.runtime.loader import locate
from msao_compile.stages.kit import contract
from msao_compile.stages.kit.archive import Entry
from msao_compile.stages.kit.checks import Checks, checks

Bounds = Mapping[str, float | None]
BoundsBy = Mapping[str, Bounds]
"""Bounds by precision."""
ENTRY = "kit.py"
CARRIED = ("errors.py", "runtime/compare.py", "runtime/ladder.py")
ROOMS = {"runtime/kit": ("",), "runtime/backends": ("cuda", "engine_file", "trt")}
"""Files of this package that a kit carries, by folder and how their names begin: they need NumPy and the device's own
library only."""
LEFT_HERE = ("entry.py", "__init__.py")
BUILD_COPIES, LIBRARY_BYTES = 4, 900_000_000
"""Peak memory of a build: copies of the weights that it holds, and what the library takes by itself. By the rule of
thumb of 3 to 4 times the parameters, and one build measured off-GPU; no Jetson was measured."""
ENGINE_COPIES, ENGINE_BYTES = 2, 20_000_000
"""Disk of an engine: its file and the one it is written to before, and what it has beside weights."""


@dataclass(frozen=True)
class Packed:
    """What is to be written: every file of the kit, and kit.json's content."""

    entries: tuple[Entry, ...]
    content: dict[str, Any]

    @property
    def id(self) -> str:
        """The digest of what is ordered."""
        return str(self.content["id"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, before any compression."""
        return sum(entry.size_bytes for entry in self.entries)


def pack(folder: Path, deployment: Deployment, target: str) -> Packed:
    """Everything of a target's kit; runs the fp32 graphs for expected outputs, and writes nothing.

    Raises:
        InputError, DeploymentError: as `contract.ordered`, or a file is missing or damaged.
        MissingTool: ONNX Runtime is not installed.
    """
    engines = contract.ordered(deployment, target)
    ordered = contract.contract(deployment, target)
    bounds = bounds_of(folder, deployment)
    entries = {entry.path: entry for entry in (*_code(), *_weights(folder, deployment, engines))}
    modules: dict[str, Any] = {}
    for engine in engines:
        name, found = contract.name_of(deployment, engine), checks(folder, deployment, engine)
        stored = {f"checks/{name}/{case.name}.npz": case.content for case in found.cases}
        entries |= {path: Entry(path, content) for path, content in stored.items()}
        modules[name] = _about(deployment, engine, found, list(stored), bounds)
    content = {
        "format": FORMAT,
        "id": contract.kit_id(ordered),
        "created_by": deployment.created_by,
        "contract": ordered,
        "wanted": _wanted(engines[0]),
        "modules": modules,
        "files": [_listed(entries[path]) for path in sorted(entries)],
    }
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    return Packed((Entry(PLAN_NAME, text.encode()), *(entries[path] for path in sorted(entries))), content)


def _wanted(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = engine.compatibility.model_dump(mode="json", exclude_none=True)
    return found


def _about(deployment: Deployment, engine: Engine, found: Checks, paths: list[str], bounds: BoundsBy) -> dict[str, Any]:
    graph, module = contract.graph_of(deployment, engine), deployment.module(engine.module)
    decoders = (model.decoder for model in contract.owners(deployment, module) if model.decoder is not None)
    weights = sum(reference.size_bytes for reference in graph.data) + graph.file.size_bytes
    return {
        "states": [{**state.model_dump(mode="json"), "shape": list(state.shape)} for state in graph.states],
        "kv_capacity": next((facts.kv_capacity for facts in decoders), 0),
        "cases": [
            {"name": case.name, "file": path, "steps": case.steps}
            for case, path in zip(found.cases, paths, strict=True)
        ],
        "reference": found.reference,
        "left_out": found.left_out,
        "bounds": held_to(bounds[engine.precision], module.component),
        "memory_bytes": LIBRARY_BYTES + BUILD_COPIES * weights,
        "disk_bytes": ENGINE_BYTES + ENGINE_COPIES * weights,
    }


def bounds_of(folder: Path, deployment: Deployment) -> BoundsBy:
    """The bounds by precision that the deployment was held against, and ours where it has none.

    Raises:
        DeploymentError: its evidence is missing, damaged or of an older version.
    """
    if "parity" not in deployment.evidence:
        return DEFAULT_BOUNDS
    path = locate(folder, deployment.evidence["parity"])
    try:
        evidence = ParityEvidence.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DeploymentError(f"{path}: not the evidence of this version; build the deployment again") from error
    return {**DEFAULT_BOUNDS, **evidence.bounds}


def held_to(bounds: Bounds, component: str) -> dict[str, float | None]:
    """The bounds of a module: the largest entry of a row means something in logits only."""
    return {name: value for name, value in bounds.items() if component == "decoder" or name != "argmax_agreement"}


def _listed(entry: Entry) -> dict[str, Any]:
    return {"path": entry.path, "sha256": entry.sha256, "size_bytes": entry.size_bytes}


def _weights(folder: Path, deployment: Deployment, engines: tuple[Engine, ...]) -> Iterator[Entry]:
    """Graphs and data files as the deployment has them, each once and under its own path: graphs name their data."""
    seen: dict[str, FileRef] = {}
    for engine in engines:
        graph = contract.graph_of(deployment, engine)
        seen |= {reference.path: reference for reference in (graph.file, *graph.data)}
    for path, reference in seen.items():
        yield Entry(path, locate(folder, reference), reference.sha256)


def _code() -> Iterator[Entry]:
    """The entry and the files of this package that it needs, under their own paths, with empty `__init__` files."""
    package = resources.files("msao_compile")
    yield Entry(ENTRY, package.joinpath("runtime", "kit", "entry.py").read_bytes())
    paths = list(CARRIED)
    for room, beginnings in ROOMS.items():
        names = sorted(file.name for file in package.joinpath(*room.split("/")).iterdir())
        paths += [f"{room}/{name}" for name in names
                  if name.endswith(".py") and name.startswith(beginnings) and name not in LEFT_HERE]  # fmt: skip
    for path in paths:
        yield Entry(f"msao_compile/{path}", package.joinpath(*path.split("/")).read_bytes())
    for room in ("", "runtime/", *(f"{room}/" for room in ROOMS)):
        yield Entry(f"msao_compile/{room}__init__.py", b"")
