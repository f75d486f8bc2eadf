"""Which targets of the catalogue this machine can build engines for, which of those it can run, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from msao_compile.recipe.targets import Target

HEADERS = ("build", "targets", "run", "to do")
INSTALL = "pip install 'msao-compile[{}]'"
NO_GPU = "no NVIDIA GPU that works"
KIT = "msao-compile kit DEPLOYMENT --target NAME makes what the device needs"


@dataclass(frozen=True)
class Here:
    """What matters of this machine: backends that are there (`onnxruntime-gpu`: one with the CUDA provider), the SMs of
    its GPUs (89 for 8.9), and whether it is a Jetson."""

    backends: Mapping[str, bool]
    sms: frozenset[int]
    is_jetson: bool


@dataclass(frozen=True)
class Reach:
    """One target. `build` says where its engines can be built as things are here, `run` why they do not run here."""

    target: str
    backend: str
    sm: int | None
    build: Literal["here", "ahead of time", "on the device", "no"]
    runs: bool
    run: str
    missing_extra: str | None
    """What has to be installed to build or run more of it here."""
    advice: str


def sms(gpu: Mapping[str, Any]) -> frozenset[int]:
    """The SMs of the GPUs that the driver reports."""
    found = gpu.get("gpus", ()) if gpu.get("usable") else ()
    return frozenset(int(str(one["compute_capability"]).replace(".", "")) for one in found)


def reaches(here: Here) -> tuple[Reach, ...]:
    """Every target of the catalogue, in its order."""
    from msao_compile.recipe.targets import catalogue

    return tuple(_reach(target, here) for target in catalogue())


def _reach(target: Target, here: Here) -> Reach:
    if target.engine_build == "onnxruntime":
        return _of_this_machine(target, here)
    ahead = "rtx" in target.engine_build
    package, extra = ("tensorrt_rtx", "rtx") if ahead else ("tensorrt", "tensorrt")
    present, matches = here.backends.get(package, False), _is_here(target, here)
    missing = extra if not present and (ahead or matches) else None
    run = _why_not(target, package, present, here)
    build: Literal["here", "ahead of time", "on the device", "no"] = "on the device"
    if ahead:
        build = "ahead of time" if present else "no"
    elif present and matches:
        build = "here"
    advice = INSTALL.format(missing) if missing else "" if ahead else KIT
    return Reach(target.target_id, package, target.sm, build, run == "", run, missing, advice)


def _of_this_machine(target: Target, here: Here) -> Reach:
    """Targets that are whatever this machine is: engines are graphs that ONNX Runtime opens."""
    package, extra = ("onnxruntime", "ort") if target.platform_kind == "cpu" else ("onnxruntime-gpu", "gpu")
    present, wants_gpu = here.backends.get(package, False), extra == "gpu"
    run = "" if present else f"{package} is not installed"
    if wants_gpu and not here.sms:
        run = NO_GPU
    missing = None if present or run == NO_GPU else extra
    advice = "" if missing is None else INSTALL.format(missing)
    build: Literal["here", "no"] = "here" if here.backends.get("onnxruntime", False) else "no"
    return Reach(target.target_id, package, None, build, run == "", run, missing, advice)


def _is_here(target: Target, here: Here) -> bool:
    return target.sm in here.sms and here.is_jetson == (target.platform_kind == "jetson")


def _why_not(target: Target, package: str, present: bool, here: Here) -> str:
    """Why this machine does not run a target's engines; empty where it does."""
    if not here.sms:
        return NO_GPU
    if not _is_here(target, here):
        return f"the GPU here is SM {', '.join(map(str, sorted(here.sms)))}"
    return "" if present else f"{package} is not installed"


def rows(targets: Sequence[Reach]) -> list[tuple[str, ...]]:
    """One row for all targets of which the same is to be said."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in targets:
        grouped.setdefault((one.build, one.run or "yes", one.advice), []).append(one.target)
    return [(build, ", ".join(names), run, advice) for (build, run, advice), names in grouped.items()]
