"""`kit.json` as the device reads it: what to build, from which files, and what the engines are held against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msao_compile.errors import DamagedFile, DeploymentError
from msao_compile.runtime.kit.files import digest, sha256

PLAN_NAME = "kit.json"
FORMAT = "kit/1"


@dataclass(frozen=True)
class File:
    """A file below the kit's folder and what its bytes must be."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class State:
    """One tensor of a decoder's state, as `manifest.schema.StateSpec` has it."""

    name: str
    output: str
    dtype: str
    shape: tuple[int | str, ...]
    update: str

    @property
    def rollback(self) -> bool:
        """Whether positions can be forgotten."""
        return self.update != "replace"


@dataclass(frozen=True)
class Case:
    """Stored inputs and expected outputs in one `.npz`: `in.<name>` and `out.<name>`.

    Of a decoder, `steps` > 0 says how many runs follow each other on one state, with `<step>.in.<name>` and
    `<step>.out.logits`.
    """

    name: str
    file: str
    steps: int


@dataclass(frozen=True)
class Module:
    """One engine to build and what it is held against; `left_out` says why there are no cases."""

    name: str
    module: str
    component: str
    dialect: str
    precision: str
    backend: str
    order: Mapping[str, Any]
    graph: File
    data: tuple[File, ...]
    states: tuple[State, ...]
    kv_capacity: int
    cases: tuple[Case, ...]
    left_out: str | None
    bounds: Mapping[str, float | None]
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Plan:
    """The kit: `id` names what was ordered and can be computed from the deployment, `sha256` is that of kit.json."""

    id: str
    sha256: str
    deployment: str
    target: str
    wanted: Mapping[str, Any]
    modules: tuple[Module, ...]
    files: tuple[File, ...]

    @property
    def ahead_of_time(self) -> bool:
        """Whether every engine names the GPUs that it is for, so that none is needed to build it."""
        return all(module.order.get("compute_capabilities") for module in self.modules)


def read_plan(folder: Path) -> Plan:
    """The folder's kit.json.

    Raises:
        DeploymentError: it is missing, or not of this format.
        DamagedFile: what it orders is not what its id says.
    """
    path = folder / PLAN_NAME
    try:
        text = path.read_bytes()
        content = json.loads(text)
        plan = _plan(content, hashlib.sha256(text).hexdigest())
    except FileNotFoundError as error:
        raise DeploymentError(f"{folder}: no {PLAN_NAME}; unpack the kit again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(f"{path}: not a kit of format {FORMAT} ({error}); unpack the kit again") from error
    if digest(content["contract"]) != plan.id:
        raise DamagedFile(f"{path}: what it orders was changed; its id {plan.id} says otherwise: unpack the kit again")
    return plan


def check_files(folder: Path, plan: Plan) -> int:
    """Every file of the kit has the bytes it was packed with; gives how many bytes were read.

    Raises:
        DamagedFile: names the first that is missing, of another size or changed.
    """
    for file in plan.files:
        path = folder / file.path
        if not path.is_file():
            raise DamagedFile(f"{path}: belongs to this kit and is missing; unpack the kit again")
        if path.stat().st_size != file.size_bytes:
            raise DamagedFile(
                f"{path}: {path.stat().st_size} bytes where {file.size_bytes} were packed; unpack the kit again"
            )
        if (found := sha256(path)) != file.sha256:
            raise DamagedFile(f"{path}: its SHA-256 is {found} where {file.sha256} was packed; unpack the kit again")
    return sum(file.size_bytes for file in plan.files)


def _plan(content: Any, own: str) -> Plan:
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}")
    contract = content["contract"]
    return Plan(
        id=content["id"],
        sha256=own,
        deployment=contract["deployment"],
        target=contract["target"],
        wanted=content["wanted"],
        modules=tuple(_module(entry, content["modules"][entry["name"]]) for entry in contract["modules"]),
        files=tuple(_file(entry) for entry in content["files"]),
    )


def _module(ordered: Any, about: Any) -> Module:
    return Module(
        **{name: ordered[name] for name in ("name", "module", "component", "dialect", "precision", "backend", "order")},
        graph=_file(ordered["graph"]),
        data=tuple(map(_file, ordered["data"])),
        states=tuple(State(**{**state, "shape": tuple(state["shape"])}) for state in about["states"]),
        cases=tuple(Case(**case) for case in about["cases"]),
        **{name: about[name] for name in ("kv_capacity", "left_out", "bounds", "memory_bytes", "disk_bytes")},
    )


def _file(entry: Any) -> File:
    parts = PurePosixPath(entry["path"]).parts
    if not parts or ".." in parts or entry["path"].startswith("/"):
        raise ValueError(f"path {entry['path']!r} leaves the folder")
    return File(entry["path"], entry["sha256"], entry["size_bytes"])
