"""`receipt.json`: what a device proved of the engines that it built from a kit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from msao_compile.manifest.engine import Backend, Dialect, Precision, Status
from msao_compile.manifest.frozen import FileRef, Frozen, Sha256

RECEIPT_NAME = "receipt.json"
Phase = Literal["build", "run", "parity", "measure"]


class PhaseEntry(Frozen):
    """How a phase ended on the device; only `done` is a pass."""

    verdict: Literal["done", "failed", "not run"]
    reason: str | None
    facts: dict[str, Any]


class BuiltModule(Frozen):
    """One module: what its engine was made from, the engine, and each phase; `status` is what the device claims."""

    name: str
    module: Sha256
    component: str
    backend: Backend
    precision: Precision
    dialect: Dialect
    graph: Sha256
    data: tuple[Sha256, ...]
    engine: FileRef | None
    status: Status
    phases: dict[Phase, PhaseEntry]


class Receipt(Frozen):
    """The whole receipt. `kit` is the digest of what was ordered, `device` the compatibility tuple as it told it."""

    format: Literal["receipt/1"]
    kit: Sha256
    kit_sha256: Sha256
    deployment: str
    target: str
    runner: Literal["engine", "onnxruntime"]
    device: dict[str, Any]
    power: dict[str, str]
    versions: dict[str, str]
    written_at: str
    modules: tuple[BuiltModule, ...] = Field(min_length=1)
