"""`kit.py`: check the kit and the device, then build, run, compare and measure each module, and write the receipt."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError, MsaoError, StageError
from msao_compile.runtime.kit import child, device, receipt
from msao_compile.runtime.kit.device import Device
from msao_compile.runtime.kit.journal import Entry, Journal
from msao_compile.runtime.kit.phases import Bench, climb, recall
from msao_compile.runtime.kit.plan import Module, Plan, check_files, read_plan
from msao_compile.runtime.kit.power import power_facts
from msao_compile.runtime.kit.runners import ENGINE, RUNNERS
from msao_compile.runtime.ladder import DONE

Tell = Callable[[str], None]
WHOLE = "device"
"""The journal's name for what belongs to no module."""


@dataclass(frozen=True)
class Options:
    """What kit.py was asked for; `only` names modules, none means all."""

    only: tuple[str, ...] = ()
    check: bool = False
    keep_going: bool = False
    runner: str = ENGINE


def main(folder: Path, arguments: Sequence[str], tell: Tell) -> int:
    """Run kit.py; gives the exit code: 0 all done, 2 wrong kit or device, 3 failed, 4 something is missing, 5 a gate
    (parity, memory, disk) said no, 130 interrupted."""
    options = _options(arguments)
    try:
        plan = read_plan(folder)
        journal = Journal(folder)
        with journal.alone():
            return _work(folder, plan, journal, options, tell)
    except MsaoError as error:
        tell(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    except KeyboardInterrupt:
        tell("error: interrupted; what was finished is kept, and the next run continues")
        return 130


def _work(folder: Path, plan: Plan, journal: Journal, options: Options, tell: Tell) -> int:
    modules = _chosen(plan, options.only)
    tell(f"begin unpack {plan.deployment} for {plan.target}, kit {plan.id[:12]}")
    tell(f"done unpack {len(plan.files)} files, {check_files(folder, plan) / 1e6:.1f} MB, all as packed")
    found = _check_device(folder, plan, journal, tell)
    tell("begin power")
    power = power_facts()
    tell("done power " + ", ".join(f"{name}: {said.splitlines()[0] if said else ''}" for name, said in power.items()))
    bench = Bench(folder, plan, found, power, options.runner, journal, tell)
    _check_room(bench, modules)
    if options.check:
        tell("done check: nothing was built")
        return 0
    entries: dict[str, dict[str, Entry]] = {}
    for module in modules:
        entries[module.name] = climb(bench, module)
        if _failed(entries[module.name]) and not options.keep_going:
            break
    tell("begin receipt")
    known = {module.name: entries.get(module.name) or recall(bench, module) for module in plan.modules}
    written = receipt.write(bench, {name: phases for name, phases in known.items() if phases})
    for module in written["modules"]:
        tell(f"status {module['name']} {module['status']}")
    tell(f"done receipt {folder / receipt.RECEIPT_NAME}")
    code = _code(entries)
    if code == 4:
        tell(f"missing: {_lacking(entries)}; the engines of this receipt are good for what their status says")
    return code


def _lacking(entries: dict[str, dict[str, Entry]]) -> str:
    """What could not be done for want of something, and why, each reason once."""
    found: dict[str, list[str]] = {}
    for name, phases in entries.items():
        stopped = next(((phase, entry) for phase, entry in phases.items() if entry.verdict != DONE), None)
        if stopped is not None:
            found.setdefault(f"{stopped[0]} was not done because {stopped[1].reason}", []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in found.items())


def _check_device(folder: Path, plan: Plan, journal: Journal, tell: Tell) -> Device:
    """The device's tuple, where it is the kit's.

    Raises:
        DeploymentError, MissingTool: as `device.refuse_other` and `device.refuse_old_library`.
    """
    tell("begin device")
    observed = child.run(folder, {"do": "observe"}, journal.place(WHOLE, "device"), tell)
    if observed.verdict != DONE:
        raise StageError(f"the device cannot be looked at: {observed.reason}")
    found, no_driver = Device(**observed.facts["device"]), observed.facts["no_driver"]
    tell(f"wanted {_line(plan.wanted)}")
    tell(f"found {_line(found.facts)}")
    unknown = device.refuse_other(plan.wanted, found, not plan.ahead_of_time, no_driver)
    for module in plan.modules:
        device.refuse_old_library(module.backend, module.dialect, found.tensorrt)
    more = f"; not told here: {', '.join(unknown)}" if unknown else ""
    if no_driver is not None:
        more += f"; {no_driver}: engines are built ahead of time and nothing will be run"
    tell(f"done device it is the kit's{more}")
    return found


def _check_room(bench: Bench, modules: Sequence[Module]) -> None:
    """Memory for the largest build that is still to come, and disk for all of them.

    Raises:
        GateError: too little of either.
    """
    waiting = [module for module in modules if not bench.journal.place(module.name, "build").exists()]
    memory = max((module.memory_bytes for module in waiting), default=0)
    disk = sum(module.disk_bytes for module in waiting)
    device.refuse_no_room((memory, device.available_bytes()), (disk, shutil.disk_usage(bench.folder).free))


def _chosen(plan: Plan, only: Sequence[str]) -> list[Module]:
    known = {module.name for module in plan.modules} | {module.component for module in plan.modules}
    strange = next((name for name in only if name not in known), None)
    if strange is not None:
        names = ", ".join(module.name for module in plan.modules)
        raise InputError(f"--only {strange}: no such module; this kit has {names}")
    return [module for module in plan.modules if not only or {module.name, module.component} & set(only)]


def _failed(entries: dict[str, Entry]) -> bool:
    return any(entry.verdict == "failed" for entry in entries.values())


def _code(entries: dict[str, dict[str, Entry]]) -> int:
    """What went worst: a failure before what only could not run."""
    every = [entry for phases in entries.values() for entry in phases.values() if entry.verdict != DONE]
    failed = [entry.exit_code for entry in every if entry.verdict == "failed"]
    return max(failed) if failed else max((entry.exit_code for entry in every), default=0)


def _line(facts: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="kit.py", description="Build this kit's engines on this device, run and check them, write receipt.json.",
        epilog="Run it again after anything went wrong: what is finished is kept.",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="check the kit and the device, and build nothing")
    parser.add_argument(
        "--only", action="append", default=[], metavar="MODULE", help="only this module; may be repeated"
    )
    parser.add_argument("--keep-going", action="store_true", help="go on with the next module where one fails")
    parser.add_argument("--runner", choices=RUNNERS, default=ENGINE, help=argparse.SUPPRESS)
    given = parser.parse_args(list(arguments))
    return Options(tuple(given.only), given.check, given.keep_going, given.runner)
