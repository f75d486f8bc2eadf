"""`receipt.json`: what the device proved, for `msao-compile build --accept-receipt`."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from msao_compile.runtime.kit.files import write_json, written
from msao_compile.runtime.kit.journal import Entry
from msao_compile.runtime.kit.phases import Bench
from msao_compile.runtime.kit.plan import Module
from msao_compile.runtime.ladder import status

RECEIPT_NAME = "receipt.json"
FORMAT = "receipt/1"


def write(bench: Bench, found: Mapping[str, Mapping[str, Entry]]) -> dict[str, Any]:
    """Write the receipt, whole or not at all, and give its content; `found` are each module's entries by phase.

    It is the state of the kit and not of the last run: modules that earlier runs built belong into `found` too.

    Raises:
        StageError: the disk is full.
    """
    content = {
        "format": FORMAT,
        "kit": bench.plan.id,
        "deployment": bench.plan.deployment,
        "target": bench.plan.target,
        "runner": bench.runner,
        "device": bench.device.facts,
        "power": dict(bench.power),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "modules": [_module(module, found[module.name], bench.runner) for module in bench.plan.modules
                    if module.name in found],
    }  # fmt: skip
    place = bench.folder / RECEIPT_NAME
    with written(place):
        place.with_name(f"{RECEIPT_NAME}.sig").unlink(missing_ok=True)  # of other bytes
    write_json(place, content)
    return content


def _module(module: Module, entries: Mapping[str, Entry], runner: str) -> dict[str, Any]:
    phases = {}
    for name, entry in entries.items():
        told = {key: value for key, value in asdict(entry).items() if key in ("verdict", "reason", "facts")}
        phases[name] = {**told, "facts": {key: value for key, value in told["facts"].items() if key != "engine"}}
    return {
        "name": module.name,
        "module": module.module,
        "component": module.component,
        "backend": module.backend,
        "precision": module.precision,
        "dialect": module.dialect,
        "graph": module.graph.sha256,
        "data": [file.sha256 for file in module.data],
        "engine": entries["build"].facts.get("engine"),
        "status": status({name: entry.verdict for name, entry in entries.items()}, runner),
        "phases": phases,
    }
