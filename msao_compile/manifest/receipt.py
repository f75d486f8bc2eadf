"""`receipt.json`: what a device proved of the engines that it built from a kit."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from msao_compile.manifest.engine import Backend, Dialect, Precision, Status
from msao_compile.manifest.frozen import FileRef, Frozen, Sha256

RECEIPT_NAME = "receipt.json"
WRITTEN_AT = "%Y-%m-%dT%H:%M:%SZ"
NUMBERED = r"^\d+\.\d+"
Phase = Literal["build", "run", "parity", "measure"]


class PhaseEntry(Frozen):
    """How a phase ended on the device; only `done` is a pass."""

    verdict: Literal["done", "failed", "not run"]
    reason: str | None
    facts: dict[str, Any]

    @model_validator(mode="after")
    def _has_a_reason_unless_done(self) -> PhaseEntry:
        if (self.verdict == "done") != (self.reason is None):
            raise ValueError(f"a phase that is {self.verdict!r} has the reason {self.reason!r}")
        return self


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


class Versions(Frozen):
    """What ran kit.py."""

    python: str = Field(pattern=NUMBERED)
    numpy: str = Field(pattern=NUMBERED)


class Receipt(Frozen):
    """The whole receipt. `kit` is the digest of what was ordered, `device` the compatibility tuple as it told it."""

    format: Literal["receipt/1"]
    kit: Sha256
    deployment: str
    target: str
    runner: Literal["engine", "onnxruntime"]
    device: dict[str, Any]
    power: dict[str, str]
    versions: Versions
    written_at: str
    modules: tuple[BuiltModule, ...] = Field(min_length=1)

    @field_validator("written_at")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        try:
            datetime.strptime(value, WRITTEN_AT)
        except ValueError:
            raise ValueError(f"{value!r} is no time in UTC such as 2025-01-31T12:00:00Z") from None
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Receipt:
        names = [module.name for module in self.modules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"modules has {twice} more than once")
        if self.runner == "engine" and self.device.get("gpu_architecture") is None:
            for module in self.modules:
                for phase in ("run", "parity", "measure"):
                    if phase in module.phases and module.phases[phase].verdict == "done":
                        raise ValueError(f"{phase} of {module.name} is done where the device tells of no GPU")
        return self
