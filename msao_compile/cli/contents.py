"""What a path holds: a deployment, a recipe, a checkpoint, a store, an engine or an ONNX file, as facts and tables."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msao_compile.cli import units
from msao_compile.cli.draw import Sheet
from msao_compile.errors import DamagedFile, DeploymentError, InputError

if TYPE_CHECKING:
    from msao_compile.manifest.schema import Deployment, Engine, FileRef, Module


@dataclass(frozen=True)
class Contents:
    """What was found: facts for programs, tables for people, and a sentence for each damaged file."""

    title: str
    facts: dict[str, Any]
    sheets: tuple[Sheet, ...]
    faults: tuple[str, ...] = ()
    remark: str = ""


def look_into(path: Path) -> Contents:
    """Find out what a path is, and look inside.

    Raises:
        InputError: there is nothing, or nothing that is known here.
    """
    if not path.exists():
        raise InputError(
            f"{path}: there is nothing; give a deployment, a recipe, a checkpoint, a store, an .engine or an .onnx file"
        )
    for is_kind, look in _KINDS:
        if is_kind(path):
            return look(path)
    raise InputError(
        f"{path}: is not a deployment (deployment.json), a recipe (.toml), a checkpoint (config.json), "
        "a store (objects/), an .engine or an .onnx file"
    )


def deployment(folder: Path) -> Contents:
    """A deployment, each of its files held to its recorded size and digest."""
    from msao_compile.runtime.loader import read_manifest

    manifest = read_manifest(folder)
    states = {path: _file_state(folder, ref) for path, ref in sorted(manifest.all_files().items())}
    states |= {path: (states[path][0], fault) for path, fault in _engine_faults(folder, manifest, states)}
    faults = tuple(fault for _, fault in states.values() if fault)
    total = sum(ref.size_bytes for ref, _ in states.values())
    facts = {
        "kind": "deployment",
        "path": str(folder),
        "name": manifest.name,
        "schema_version": manifest.schema_version,
        "created_by": manifest.created_by,
        "modules": [_module_facts(manifest, module) for module in manifest.modules],
        "engines": [_engine_facts(manifest, engine) for engine in manifest.engines],
        "files": [{**ref.model_dump(), "intact": not fault} for ref, fault in states.values()],
        "size_bytes": total,
    }
    sheets = (_module_sheet(manifest), _engine_sheet(manifest), _file_sheet(states))
    title = f"deployment {manifest.name} (schema {manifest.schema_version}, {manifest.created_by})"
    remark = f"{units.plural(len(states), 'file')}, {units.size(total)}: every digest is as recorded"
    return Contents(title, facts, sheets, faults, remark)


def _file_state(folder: Path, ref: FileRef) -> tuple[FileRef, str]:
    from msao_compile.runtime.loader import locate

    try:
        locate(folder, ref)
    except DeploymentError as error:
        return ref, str(error)
    return ref, ""


def _engine_faults(
    folder: Path, manifest: Deployment, states: Mapping[str, tuple[FileRef, str]]
) -> Iterator[tuple[str, str]]:
    """Engine files with the bytes recorded that are no whole engine, or not the one that the manifest says."""
    from msao_compile.runtime.backends import engine_file
    from msao_compile.stages.kit.contract import header_facts

    for engine in manifest.engines:
        if engine.file is None or engine.backend == "ort" or states[engine.file.path][1]:
            continue
        path = folder / engine.file.path
        try:
            header = engine_file.read_header(path, verify=True)
            engine_file.refuse_other(path, header, header_facts(manifest, engine), "the manifest")
            version = engine.compatibility.tensorrt
            if version is not None and not f"{header['library_version']}.".startswith(f"{version}."):
                engine_file.refuse_other(path, header, {"library_version": version}, "the manifest")
        except DeploymentError as error:
            yield engine.file.path, str(error)


def engine(path: Path) -> Contents:
    """An engine file: what its header says it is for; the plan behind it is read through and not opened.

    Raises:
        DamagedFile: it has no header of ours, or the header is damaged.
    """
    from msao_compile.runtime.backends import engine_file

    header = engine_file.read_header(path)
    faults: tuple[str, ...] = ()
    try:
        engine_file.read_header(path, verify=True)
    except DamagedFile as error:
        faults = (str(error),)
    shown = {name: value for name, value in header.items() if name not in ("order", "inputs")}
    about = tuple((name.replace("_", " "), _told(value)) for name, value in shown.items() if value is not None)
    inputs = tuple((name, _told(shape)) for name, shape in header.get("inputs", {}).items())
    profiles = tuple(
        (profile["name"], one["name"], *(_told(one[end]) for end in ("min", "opt", "max")))
        for profile in header["order"]["profiles"] for one in profile["inputs"]
    )  # fmt: skip
    sheets = (Sheet(("engine", ""), about), Sheet(("input", "shape"), inputs),
              Sheet(("profile", "input", "min", "opt", "max"), profiles))  # fmt: skip
    facts = {"kind": "engine", "path": str(path), "header": header, "intact": not faults}
    title = f"engine of {header['component']} for {_told(header['gpu_architectures'])}"
    remark = f"{units.size(path.stat().st_size)}: header and plan are as written; it was not opened"
    return Contents(title, facts, tuple(sheet for sheet in sheets if sheet.rows), faults, remark)


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_engine(path: Path) -> bool:
    from msao_compile.runtime.backends.engine_file import MAGIC

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".engine" or file.read(len(MAGIC)) == MAGIC


def users_of(manifest: Deployment, module_id: str) -> list[str]:
    """The models that are made of this module."""
    return [model.name for model in manifest.models if module_id in model.components.values()]


def _module_facts(manifest: Deployment, module: Module) -> dict[str, Any]:
    return {
        **module.model_dump(include={"id", "component", "params", "weight_bytes"}),
        "models": users_of(manifest, module.id),
        "dialects": [graph.dialect for graph in module.graphs],
    }


def _module_sheet(manifest: Deployment) -> Sheet:
    rows = [
        (
            module.component,
            ", ".join(users_of(manifest, module.id)),
            units.count(module.params),
            units.size(module.weight_bytes),
            ", ".join(f"{graph.dialect} (opset {graph.opset})" for graph in module.graphs),
            module.id[:12],
        )
        for module in manifest.modules
    ]
    return Sheet(("module", "models", "parameters", "weights", "graphs", "id begins"), tuple(rows), frozenset({2, 3}))


def _engine_facts(manifest: Deployment, engine: Engine) -> dict[str, Any]:
    shown = {"module", "target", "backend", "precision", "dialect", "status", "reason"}
    return {"component": manifest.module(engine.module).component, **engine.model_dump(include=shown)}


def _engine_sheet(manifest: Deployment) -> Sheet:
    rows = [
        (
            manifest.module(engine.module).component,
            ", ".join(users_of(manifest, engine.module)),
            engine.target,
            engine.backend,
            engine.precision,
            engine.dialect,
            engine.status,
            engine.reason or "",
        )
        for engine in manifest.engines
    ]
    return Sheet(("engine", "models", "target", "backend", "precision", "dialect", "status", "reason"), tuple(rows))


def _file_sheet(states: dict[str, tuple[FileRef, str]]) -> Sheet:
    rows = [("DAMAGED" if fault else "ok", path, units.size(ref.size_bytes)) for path, (ref, fault) in states.items()]
    return Sheet(("", "file", "size"), tuple(rows), frozenset({2}))


def recipe(path: Path) -> Contents:
    """A recipe that can be used."""
    from msao_compile.recipe.read import read_recipe

    found = read_recipe(path)
    models = tuple((name, model.role, model.checkpoint, model.revision or "") for name, model in found.models.items())
    targets = tuple(
        (name, target.device, target.precision if isinstance(target.precision, str) else _pairs(target.precision))
        for name, target in found.targets.items()
    )
    tasks = tuple((name, ", ".join(task.models)) for name, task in found.tasks.items())
    sheets = (
        Sheet(("model", "role", "checkpoint", "revision"), models),
        Sheet(("target", "device", "precision"), targets),
        Sheet(("task", "models"), tasks),
    )
    facts = {"kind": "recipe", "path": str(path), **found.model_dump(mode="json")}
    return Contents(f"recipe {found.name}", facts, sheets, remark=f"next: msao-compile plan {shlex.quote(str(path))}")


def _pairs(table: Mapping[Any, str]) -> str:
    return ", ".join(f"{component} {precision}" for component, precision in table.items())


def checkpoint(folder: Path) -> Contents:
    """A Hugging Face checkpoint: what it says it is, and its tensors by their first two names."""
    from msao_compile.families.checkpoint import read_config, read_sources, weight_files

    config = read_config(folder)
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    files = weight_files(folder)
    for file in files:
        for key, source in read_sources(file).items():
            group = groups[".".join(key.split(".")[:2])]
            for index, amount in enumerate((1, math.prod(source.shape), source.size_bytes)):
                group[index] += amount
    rows = tuple((name, str(n), units.count(params), units.size(held)) for name, (n, params, held) in groups.items())
    architectures = config.get("architectures") or ["unknown architecture"]
    total = sum(held for _, _, held in groups.values())
    facts = {
        "kind": "checkpoint",
        "path": str(folder),
        "model_type": config["model_type"],
        "architectures": architectures,
        "params": sum(params for _, params, _ in groups.values()),
        "size_bytes": total,
        "groups": [{"name": name, "tensors": n, "params": p, "bytes": b} for name, (n, p, b) in groups.items()],
    }
    title = f"checkpoint {config['model_type']} ({', '.join(architectures)})"
    remark = (
        f"{units.plural(len(files), 'file')}, {units.size(total)}; next: msao-compile init {shlex.quote(str(folder))}"
    )
    return Contents(
        title,
        facts,
        (Sheet(("tensors under", "tensors", "parameters", "size"), rows, frozenset({1, 2, 3})),),
        remark=remark,
    )


def onnx_file(path: Path) -> Contents:
    """An ONNX file by size alone, with the file its weights usually stand in."""
    data = path.with_name(path.name + ".data")
    files = [path, *([data] if data.is_file() else [])]
    sizes = {file.name: file.stat().st_size for file in files}
    rows = tuple((name, units.size(held)) for name, held in sizes.items())
    facts = {"kind": "onnx", "path": str(path), "files": sizes, "size_bytes": sum(sizes.values())}
    return Contents(f"ONNX graph {path.name}", facts, (Sheet(("file", "size"), rows, frozenset({1})),))


def store(folder: Path) -> Contents:
    """A store: what it holds by kind, each object once, and what is damaged; nothing in it is changed."""
    from msao_compile.store.store import Store

    opened = Store(folder)
    damages = opened.verify()
    kinds = sorted(path.name for path in (folder / "records").glob("*") if path.is_dir())
    rows: list[dict[str, Any]] = []
    named: set[str] = set()
    for kind in kinds:
        found = opened.records(kind)
        blobs = {blob.sha256: blob.size_bytes for record in found for blob in record.outputs.values()}
        fresh = [size for sha256, size in blobs.items() if sha256 not in named]
        rows.append({"kind": kind, "records": len(found), "objects": len(fresh), "bytes": sum(fresh)})
        named |= set(blobs)
    objects = {path.name: path.stat().st_size for path in (folder / "objects").glob("??/*")}
    unnamed = [size for sha256, size in objects.items() if sha256 not in named]
    facts: dict[str, Any] = {
        "kind": "store",
        "path": str(folder),
        "records": rows,
        "objects": len(objects),
        "size_bytes": sum(objects.values()),
        "unnamed_objects": len(unnamed),
        "missing_objects": len(named - objects.keys()),
        "damaged": [damage.model_dump() for damage in damages],
    }
    cells = [(row["kind"], str(row["records"]), str(row["objects"]), units.size(row["bytes"])) for row in rows]
    cells.append(("no stage: checkpoints' files and evidence", "", str(len(unnamed)), units.size(sum(unnamed))))
    sheet = Sheet(("made by", "records", "objects", "size"), tuple(cells), frozenset({1, 2, 3}))
    title = f"store of {units.plural(len(objects), 'object')}, {units.size(facts['size_bytes'])}"
    collect = f"msao-compile gc --store {shlex.quote(str(folder))} --out DIR, where DIR holds every deployment to keep"
    faults = tuple(f"{folder}: {damage}; remove it with {collect}, then build again" for damage in damages)
    sheets = (sheet, Sheet(("damaged",), tuple((fault,) for fault in faults))) if faults else (sheet,)
    return Contents(title, facts, sheets, faults, f"every byte is as stored; next: {collect}")


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Contents]], ...] = (
    (lambda path: (path / "deployment.json").is_file(), deployment),
    (lambda path: (path / "config.json").is_file(), checkpoint),
    (lambda path: (path / "objects").is_dir(), store),
    (lambda path: path.suffix == ".toml" and path.is_file(), recipe),
    (lambda path: path.suffix == ".onnx" and path.is_file(), onnx_file),
    (_is_engine, engine),
)
