"""The phases of one module: build, run, parity, measure; each is kept when it is done and not done again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msao_compile.errors import StageError
from msao_compile.runtime.kit import child, files
from msao_compile.runtime.kit.device import Device
from msao_compile.runtime.kit.journal import Entry, Journal
from msao_compile.runtime.kit.plan import Module, Plan
from msao_compile.runtime.kit.power import power_mode
from msao_compile.runtime.ladder import DONE, PHASES

ENGINES, TIMING = "engines", "timing"


@dataclass(frozen=True)
class Bench:
    """What every phase of this run of kit.py knows."""

    folder: Path
    plan: Plan
    device: Device
    power: Mapping[str, str]
    runner: str
    journal: Journal
    tell: Callable[[str], None]


def climb(bench: Bench, module: Module) -> dict[str, Entry]:
    """Take one module as far as it goes; a phase that was not done stops those after it, with the reason.

    Raises:
        StageError: the disk is full.
    """
    found: dict[str, Entry] = {}
    for phase in _reached(found):
        key = key_of(bench, module, phase, found)
        entry = bench.journal.find(module.name, phase, key)
        if entry is not None and (phase != "build" or _is_whole(bench.folder, entry)):
            bench.tell(f"reuse {phase} {module.name}")
        else:
            bench.tell(f"begin {phase} {module.name}")
            entry = replace(DOERS[phase](bench, module, key, found), key=key)
            bench.journal.write(module.name, phase, entry)
            bench.tell(_sentence(phase, module, entry))
        found[phase] = entry
    return found


def recall(bench: Bench, module: Module) -> dict[str, Entry]:
    """What earlier runs found out about a module on these grounds, without doing anything; empty where nothing."""
    found: dict[str, Entry] = {}
    for phase in _reached(found):
        entry = bench.journal.recall(module.name, phase, key_of(bench, module, phase, found))
        if phase == "build" and (entry is None or (entry.verdict == DONE and not _is_whole(bench.folder, entry))):
            return {}
        found[phase] = entry or Entry("not run", "it was interrupted or never begun", exit_code=4)
    return found


def _reached(found: dict[str, Entry]) -> Iterator[str]:
    """The phases in turn; those behind one that was not done are told so in `found` instead."""
    for phase in PHASES:
        before = next((name for name, entry in found.items() if entry.verdict != DONE), None)
        if before is None:
            yield phase
        else:
            found[phase] = Entry("not run", f"{before} was not done: {found[before].reason}")


def key_of(bench: Bench, module: Module, phase: str, found: Mapping[str, Entry]) -> str:
    """The digest of everything that a phase's result depends on."""
    about: dict[str, Any] = {"phase": phase, "kit": bench.plan.id, "module": module.name, "device": bench.device.facts}
    if phase != "build":
        about |= {
            "engine": found["build"].facts["engine"]["sha256"],
            "runner": bench.runner,
            "checks": bench.plan.sha256,
        }
    if phase == "measure":
        about |= {"power": dict(bench.power)}
    return files.digest(about)


def engine_path(bench: Bench, module: Module) -> str:
    """`engines/<model>/<component>.<precision>.<target>.<backend><version>.engine`, below the kit's folder."""
    folder = module.name.rpartition("/")[0]
    version = re.sub(r"[^0-9.]", "", bench.device.tensorrt or "")
    name = f"{module.component}.{module.precision}.{bench.plan.target}.{module.backend}{version}.engine"
    return "/".join(part for part in (ENGINES, folder, name) if part)


def timing_slot(bench: Bench) -> str:
    """The timing cache that fits GPU, CUDA, engine library and power mode, and no other."""
    device, mode = bench.device, power_mode(bench.power)
    gpu = device.gpu_name or device.gpu_architecture or "ahead-of-time"
    parts = [gpu, f"cuda{device.cuda or 'none'}", f"trt{device.tensorrt or 'none'}", *([] if mode is None else [mode])]
    return f"{TIMING}/" + "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in parts) + ".cache"


def _build(bench: Bench, module: Module, key: str, found: Mapping[str, Entry]) -> Entry:
    path, slot = engine_path(bench, module), timing_slot(bench)
    place = bench.folder / path
    with files.written(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f"*{place.name}.partial*"):  # of a build that was killed
            left.unlink()
        (bench.folder / slot).parent.mkdir(parents=True, exist_ok=True)
    job = {
        "do": "build", "module": module.name, "output": f"{path}.partial", "timing_cache": slot, "key": key,
        "device": bench.device.facts,
    }  # fmt: skip
    entry = child.run(bench.folder, job, bench.journal.place(module.name, "build"), bench.tell)
    partial = bench.folder / f"{path}.partial"
    if entry.verdict != DONE:
        return entry
    if not partial.is_file():
        return replace(entry, verdict="failed", reason="the builder left no engine", exit_code=3)
    files.keep(partial, place)
    engine = {"path": path, "sha256": files.sha256(place), "size_bytes": place.stat().st_size}
    return replace(entry, facts={**entry.facts, "engine": engine, "timing_cache": slot})


def _run(bench: Bench, module: Module, key: str, found: Mapping[str, Entry]) -> Entry:
    if not module.cases:
        return Entry("not run", f"the kit has no stored inputs for it: {module.left_out}", exit_code=4)
    return _child(bench, module, "run", found)


def _parity(bench: Bench, module: Module, key: str, found: Mapping[str, Entry]) -> Entry:
    entry = _child(bench, module, "parity", found)
    if entry.verdict != DONE and entry.exit_code == 3:
        raise StageError(f"comparing {module.name} failed: {entry.reason}")
    return entry


def _measure(bench: Bench, module: Module, key: str, found: Mapping[str, Entry]) -> Entry:
    return _child(bench, module, "measure", found)


def _child(bench: Bench, module: Module, phase: str, found: Mapping[str, Entry]) -> Entry:
    place = bench.journal.place(module.name, phase)
    job = {
        "do": phase, "module": module.name, "runner": bench.runner, "engine": found["build"].facts["engine"]["path"],
        "outputs": str(place.with_name("outputs")),
    }  # fmt: skip
    return child.run(bench.folder, job, place, bench.tell)


DOERS: Mapping[str, Callable[[Bench, Module, str, Mapping[str, Entry]], Entry]] = {
    "build": _build, "run": _run, "parity": _parity, "measure": _measure,
}  # fmt: skip


def _is_whole(folder: Path, entry: Entry) -> bool:
    engine = entry.facts["engine"]
    path = folder / str(engine["path"])
    same_size = path.is_file() and path.stat().st_size == int(engine["size_bytes"])
    return same_size and files.sha256(path) == str(engine["sha256"])


def _sentence(phase: str, module: Module, entry: Entry) -> str:
    seconds, peak = entry.facts.get("seconds"), entry.facts.get("peak_rss_bytes")
    cost = "" if seconds is None else f" in {seconds:.1f} s, peak {(peak or 0) / 1e6:.0f} MB"
    return f"{entry.verdict} {phase} {module.name}{cost}" + (f": {entry.reason}" if entry.reason else "")
