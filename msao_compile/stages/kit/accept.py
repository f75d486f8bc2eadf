"""Take a device's receipt into a deployment: as far as its own numbers prove it, and only for what was ordered."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from msao_compile.errors import DamagedFile, DeploymentError
from msao_compile.manifest.digest import sha256_file
from msao_compile.manifest.receipt import BuiltModule, Receipt
from msao_compile.manifest.schema import Compatibility, Deployment, Engine, FileRef, Status
from msao_compile.manifest.signature import ENDING
from msao_compile.recipe.schema import DEFAULT_BOUNDS
from msao_compile.runtime.backends import engine_file
from msao_compile.runtime.compare import Distance, verdict
from msao_compile.runtime.ladder import LADDER, status
from msao_compile.stages.kit import contract
from msao_compile.stages.kit.pack import BoundsBy, held_to

MEASURED = ("max_abs", "min_cosine", "argmax_agreement", "near_ties_only", "compared")


def read_receipt(path: Path) -> Receipt:
    """A receipt file.

    Raises:
        DeploymentError: it is missing, not JSON or not valid; the message names the field.
    """
    try:
        return Receipt.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DeploymentError(f"{path}: cannot be read ({error.strerror}); give a receipt.json") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the receipt"
        raise DeploymentError(f"{path}: {where}: {first['msg']}; copy the receipt from the device again") from error
    except (ValueError, RecursionError) as error:
        raise DeploymentError(f"{path}: not valid JSON ({error}); copy the receipt from the device again") from error


def engine_files(deployment: Deployment, receipt: Receipt, folder: Path) -> dict[str, Path]:
    """The engines that a receipt names, by module name, in the folder that it stands in; each was read through.

    Raises:
        DeploymentError: one is missing, or its header says that it is another engine than receipt and deployment say.
        DamagedFile: its bytes are not those of the receipt, or it is no whole engine.
    """
    wanted = {
        contract.name_of(deployment, engine): contract.header_facts(deployment, engine)
        for engine in contract.ordered(deployment, receipt.target)
    }
    found = {}
    for module in receipt.modules:
        if module.engine is None:
            continue
        path = folder / module.engine.path
        if not path.is_file():
            raise DeploymentError(f"{path}: named by the receipt but missing; copy the kit's engines/ beside it")
        if (digest := sha256_file(path)) != module.engine.sha256:
            raise DamagedFile(f"{path}: its SHA-256 is {digest} where the receipt says {module.engine.sha256}")
        header = engine_file.read_header(path, verify=True)
        engine_file.refuse_other(path, header, _told(receipt), "the receipt")
        gpu = receipt.device.get("gpu_architecture")
        if gpu is not None and gpu not in header["gpu_architectures"]:
            engine_file.refuse_other(path, header, {"gpu_architectures": [gpu]}, "the receipt's device")
        ours = {name: value for name, value in wanted[module.name].items() if name not in _told(receipt)}
        engine_file.refuse_other(path, header, ours, "the deployment")
        found[module.name] = path
    return found


def _told(receipt: Receipt) -> dict[str, Any]:
    """What the header of every engine of a receipt must say of the kit and of the device."""
    device = receipt.device
    return {
        "kit": receipt.kit,
        "target": receipt.target,
        "library_version": device.get("tensorrt"),
        "os": device.get("os"),
        "architecture": device.get("architecture"),
    }


def remaining(earlier: Receipt, newest: Receipt, named: Collection[str]) -> Receipt | None:
    """What an earlier receipt still says of its target: the engines of modules that no newer one names, as `named`
    tells; None where there is none.

    Raises:
        DeploymentError: its device, or what was installed there, is not that of the newest receipt.
    """
    left = tuple(module for module in earlier.modules if module.engine is not None and module.name not in named)
    if not left:
        return None
    for fact in sorted({*earlier.device, *newest.device}):
        before, now = earlier.device.get(fact), newest.device.get(fact)
        if before != now:
            raise DeploymentError(
                f"its device says {fact} {before} where the newer receipt for {newest.target} says {now}, so the "
                f"engines of {', '.join(module.name for module in left)} are not kept: run kit.py once more in its "
                "folder, and accept what it writes"
            )
    return earlier.model_copy(update={"modules": left})


def evidence_files(receipt: Receipt, path: Path, newer: int = 0) -> dict[str, tuple[str, Path]]:
    """The receipt and, where it is signed, its signature: by evidence name, the path in a deployment and the file.

    `newer` is how many receipts for its target came after it.
    """
    name = f"earlier-{newer}-receipt-{receipt.target}" if newer else f"receipt-{receipt.target}"
    signature = path.with_name(path.name + ENDING)
    found = {name: (f"evidence/{name}.json", path)}
    if signature.is_file():
        found[f"{name}-signature"] = (f"evidence/{name}.json{ENDING}", signature)
    return found


def kept_receipts(folder: Path) -> list[Path]:
    """The receipts that a deployment's folder holds, of each target the newest first."""
    earlier = (folder / "evidence").glob("earlier-*-receipt-*.json")
    by_age = sorted((path for path in earlier if path.name.split("-")[1].isdigit()), key=_age)
    return [*sorted((folder / "evidence").glob("receipt-*.json")), *by_age]


def _age(path: Path) -> tuple[int, str]:
    return int(path.name.split("-")[1]), path.name


def merged(
    deployment: Deployment,
    receipt: Receipt,
    evidence: Mapping[str, FileRef],
    bounds: BoundsBy = DEFAULT_BOUNDS,
) -> Deployment:
    """The deployment with what the receipt proves: engine files, statuses, the device's compatibility, the evidence.

    The engine files themselves are `engine_files`; they go where the receipt says, below the deployment's folder.
    Statuses are computed here from the phases and from the distances measured, never taken over.

    Raises:
        DeploymentError: the receipt is of another deployment, target, kit, module, graph, weights or device, or claims
            more than it proves; the message holds both.
    """
    _refuse("deployment", receipt.deployment, deployment.name)
    ordered = contract.contract(deployment, receipt.target)
    orders = {entry["name"]: entry for entry in ordered["modules"]}
    for built in receipt.modules:
        if built.name not in orders:
            raise DeploymentError(
                f"the receipt has a module {built.name} where the kit for {receipt.target} has {', '.join(orders)}"
            )
        _check_module(built, orders[built.name])
    _refuse("kit", receipt.kit, contract.kit_id(ordered))
    proven = {(built.module, built.name): built for built in receipt.modules}
    engines = []
    for engine in deployment.engines:
        key = (engine.module, contract.name_of(deployment, engine))
        takes = engine.target == receipt.target and key in proven
        engines.append(_merged(engine, proven[key], receipt, bounds) if takes else engine)
    return Deployment.model_validate(
        {**dict(deployment), "engines": tuple(engines), "evidence": {**deployment.evidence, **evidence}}
    )


def proven_status(built: BuiltModule, runner: str, bounds: BoundsBy) -> Status:
    """The rung that a module's phases prove, its parity judged again from the distances that were measured."""
    verdicts: dict[str, str] = {name: entry.verdict for name, entry in built.phases.items()}
    if built.engine is None:
        verdicts["build"] = "not run"
    parity = built.phases.get("parity")
    if parity is not None and parity.verdict == "done":
        cases = parity.facts.get("cases")
        passed = isinstance(cases, dict) and cases and all(_passes(case, built, bounds) for case in cases.values())
        verdicts["parity"] = "done" if passed else "failed"
    measured = built.phases.get("measure")
    if measured is not None and not measured.facts.get("times"):
        verdicts["measure"] = "not run"
    return cast("Status", status(verdicts, runner))


def _passes(case: Any, built: BuiltModule, bounds: BoundsBy) -> bool:
    try:
        apart = Distance(*(case[name] for name in MEASURED))
        return apart.compared > 0 and verdict(apart, held_to(bounds[built.precision], built.component))[0] == "PASS"
    except (KeyError, TypeError):
        return False


def _check_module(built: BuiltModule, order: Mapping[str, Any]) -> None:
    where = f"{built.name}: "
    _refuse(f"{where}module", built.module, order["module"])
    _refuse(f"{where}component", built.component, order["component"])
    _refuse(f"{where}graph", built.graph, order["graph"]["sha256"])
    _refuse(f"{where}weights", " ".join(built.data), " ".join(entry["sha256"] for entry in order["data"]))
    for name in ("backend", "precision", "dialect"):
        _refuse(f"{where}{name}", getattr(built, name), order[name])


def _merged(engine: Engine, built: BuiltModule, receipt: Receipt, bounds: BoundsBy) -> Engine:
    proven = proven_status(built, receipt.runner, bounds)
    if built.status != proven:
        raise DeploymentError(
            f"the receipt claims {built.status} for {built.name} where its own phases prove {proven}; run kit.py on "
            "the device again"
        )
    if LADDER.index(proven) < LADDER.index(engine.status):  # what was proven elsewhere stays
        return engine
    return engine.model_copy(
        update={
            "status": proven,
            "file": built.engine if proven != "deferred" else None,
            "reason": _why(built, proven),
            "compatibility": _compatibility(engine, receipt.device),
        }
    )


def _why(built: BuiltModule, proven: Status) -> str | None:
    """Why it went no further, in the words of the first phase that was not done."""
    stopped = next((entry for entry in built.phases.values() if entry.verdict != "done"), None)
    if proven == LADDER[-1]:
        return None
    return "the stand-in runner says nothing of an engine" if stopped is None else stopped.reason


def _compatibility(engine: Engine, device: Mapping[str, Any]) -> Compatibility:
    """The target's tuple, filled with what the device told.

    Raises:
        DeploymentError: they differ in what makes a device the target's.
    """
    known = engine.compatibility
    for name in ("platform_kind", "gpu_architecture"):
        wanted = getattr(known, name)
        if name in device and wanted is not None:
            _refuse(f"device: {name}", str(device[name]), str(wanted))
    try:
        return Compatibility(**{**known.model_dump(), **device})
    except ValidationError as error:
        first = error.errors()[0]
        raise DeploymentError(f"the receipt's device.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _refuse(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise DeploymentError(
            f"this receipt is not of this deployment: its {what} is {found} where the deployment has {wanted}"
        )
