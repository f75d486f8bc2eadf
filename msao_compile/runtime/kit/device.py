"""What this device is, and whether it is the one that a kit is for."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from msao_compile.errors import DeploymentError, GateError, MissingTool

RELEASE = "etc/nv_tegra_release"
"""Only a Jetson has this file."""
JETPACKS = {"36.4": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "38.2": "7.0", "38.4": "7.1"}
"""JetPack by Jetson Linux release, where no package tells it; from the release notes, not from devices."""
VERSIONS = ("jetpack", "l4t", "cuda", "tensorrt")
"""Compared as far as the wanted one goes: 6.2 is met by 6.2.1."""
MEMORY_SHARE = 0.85
"""What of a GPU's memory its driver reports at least."""
FLOORS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("trt", "portable"): (10, 3), ("trt", "scatter"): (10, 15),
    ("trt_rtx", "portable"): (1, 7), ("trt_rtx", "scatter"): (1, 7),
}  # fmt: skip
"""The first release of each library whose parser takes a dialect."""


@dataclass(frozen=True)
class Device:
    """The compatibility tuple as the device tells it; None is "it does not tell"."""

    os: str
    architecture: str
    platform_kind: str
    gpu_architecture: str | None = None
    gpu_name: str | None = None
    gpu_memory_mib: int | None = None
    jetpack: str | None = None
    l4t: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What is known, by field."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def system(root: Path = Path("/")) -> dict[str, Any]:
    """The part of a `Device` that needs neither driver nor engine library."""
    l4t = _l4t(root)
    found: dict[str, Any] = {
        "os": platform.system().lower(), "architecture": platform.machine(),
        "platform_kind": "discrete" if l4t is None else "jetson",
    }  # fmt: skip
    return found if l4t is None else {**found, "l4t": l4t, "jetpack": _jetpack(l4t)}


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a build may take now; None where the system does not tell."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else int(found.group(1)) * 1024


def refuse_other(wanted: Mapping[str, Any], found: Device, needs_gpu: bool, no_driver: str | None) -> tuple[str, ...]:
    """Compare every field that is wanted; gives those that the device does not tell.

    Raises:
        DeploymentError: one differs; the message holds both tuples.
        MissingTool: a GPU is needed to build, and no driver answers.
    """
    told = {name: value for name, value in wanted.items() if name not in ("target_id", "driver")}
    differing = [name for name, value in told.items() if not _fits(name, value, found.facts.get(name, value))]
    if differing:
        raise DeploymentError(
            f"this device differs from the kit's target in {', '.join(differing)}: wanted ({_said(wanted)}), found "
            f"({_said(found.facts)}); make a kit for this device with `msao-compile kit --target`"
        )
    if needs_gpu and no_driver is not None:
        raise MissingTool(f"these engines are built on the GPU that they are for: {no_driver}")
    return tuple(name for name in told if name not in found.facts)


def refuse_old_library(backend: str, dialect: str, version: str | None) -> None:
    """The device's engine library is there and its parser takes the dialect.

    Raises:
        MissingTool: it is absent or too old; names the release that would do.
    """
    name, floor = {"trt": "tensorrt", "trt_rtx": "tensorrt_rtx"}[backend], FLOORS.get((backend, dialect))
    if floor is None:
        raise MissingTool(f"no {name} takes graphs of dialect {dialect}: build the deployment again as portable")
    least = ".".join(map(str, floor))
    if version is None:
        raise MissingTool(f"{name} is not there for {sys.executable}: install it, {least} or newer")
    if _numbers(version)[:2] < floor:
        raise MissingTool(f"{name} {version} does not take graphs of dialect {dialect}: {least} or newer does")


def refuse_no_room(memory: tuple[int, int | None], disk: tuple[int, int]) -> None:
    """Needed bytes against those there are, of memory and of disk.

    Raises:
        GateError: too few; holds both numbers.
    """
    if memory[1] is not None and memory[0] > memory[1]:
        raise GateError(
            f"building needs about {memory[0] / 1e6:.0f} MB of memory and {memory[1] / 1e6:.0f} MB are available: end "
            "other programs or add swap, and run kit.py again"
        )
    if disk[0] > disk[1]:
        raise GateError(
            f"the engines need about {disk[0] / 1e6:.0f} MB of disk and {disk[1] / 1e6:.0f} MB are free: free some, "
            "and run kit.py again"
        )


def _fits(name: str, wanted: Any, found: Any) -> bool:
    if name in VERSIONS:
        parts = str(wanted).split(".")
        return str(found).split(".")[: len(parts)] == parts
    if name == "gpu_memory_mib":
        return bool(found >= MEMORY_SHARE * wanted)
    return bool(wanted in found) if name == "gpu_name" else bool(wanted == found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _said(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _l4t(root: Path) -> str | None:
    """`36.4.3` of `# R36 (release), REVISION: 4.3, …`; an empty text where the file says something else."""
    try:
        text = (root / RELEASE).read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return "" if found is None else f"{found.group(1)}.{found.group(2)}"


def _jetpack(l4t: str) -> str | None:
    """As the package `nvidia-jetpack` tells it, else by the Jetson Linux release."""
    command = ["dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return JETPACKS.get(l4t)
    version = done.stdout.partition("+")[0].partition("-")[0].strip()
    return version or JETPACKS.get(l4t)
