"""What building an engine takes, predicted from the builds that were measured, and held against the memory there is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msao_compile.manifest.engine import Backend
from msao_compile.recipe.room import GIB, OWN_RESERVE_BYTES, UNIFIED_RESERVE_BYTES
from msao_compile.recipe.targets import Target

TELLING_BYTES = 64 << 20
"""Weights from which on a build tells how much each byte of them costs; below, the library itself is what counts."""


@dataclass(frozen=True)
class Rate:
    """So many bytes, and so many more for each byte of weights in the precision of the engine."""

    base_bytes: int
    copies: float

    def of(self, weight_bytes: int) -> int:
        """Bytes for a module of so many bytes of weights."""
        return math.ceil(self.base_bytes + self.copies * weight_bytes)


PEAKS: Mapping[Backend, Rate] = {
    "ort": Rate(60_000_000, 2.0),
    "trt": Rate(900_000_000, 3.5),
    "trt_rtx": Rate(335_000_000, 4.8),
}
"""Memory of a build where none was measured yet. `ort`: a graph that is opened, the mapped file and packed weights.
`trt`: 3 to 4 copies are what builds on Jetson are known for; never measured here. `trt_rtx` 1.7.1, built without a GPU:
230 MB before a graph is there, 290 to 365 with one of few weights, and 2.9 (a table of embeddings), 3.9 (a vision
encoder of 93 M parameters) and 4.5 to 5.2 (a decoder of 135 M) copies beside that; docs/targets.md has them all."""
FILES: Mapping[Backend, Rate] = {
    "ort": Rate(0, 0.0),
    "trt": Rate(11_000_000, 1.5),
    "trt_rtx": Rate(11_000_000, 1.5),
}
"""Size of the engine's file, in the same way; `trt_rtx`: its kernels took up to 11 MB, and a large fp16 decoder up to
1.13 copies of its weights."""


@dataclass(frozen=True)
class BuildRun:
    """One build of an engine as it was measured."""

    weight_bytes: int
    peak_bytes: int
    file_bytes: int
    seconds: float


@dataclass(frozen=True)
class Need:
    """What a build is expected to take at most; `seconds` is None where nothing like it ran."""

    peak_bytes: int
    file_bytes: int
    seconds: float | None


def predict(backend: Backend, weight_bytes: int, runs: Sequence[BuildRun]) -> Need:
    """The need of a build, never below that of a measured one of the same backend and size."""
    peak = raised(PEAKS[backend], [(run.weight_bytes, run.peak_bytes) for run in runs])
    file = raised(FILES[backend], [(run.weight_bytes, run.file_bytes) for run in runs])
    return Need(peak.of(weight_bytes), file.of(weight_bytes), _seconds(weight_bytes, runs))


def raised(rate: Rate, seen: Iterable[tuple[int, int]]) -> Rate:
    """The rate, raised as little as covers every pair of weights and bytes that was seen.

    The largest ratio of all counts and no mean: a build that is killed for its memory costs more than one refused.
    """
    pairs = list(seen)
    telling = [(weights, found) for weights, found in pairs if weights >= TELLING_BYTES]
    copies = max([rate.copies, *((found - rate.base_bytes) / weights for weights, found in telling)])
    base = max([rate.base_bytes, *(math.ceil(found - copies * weights) for weights, found in pairs)])
    return Rate(base, copies)


def _seconds(weight_bytes: int, runs: Sequence[BuildRun]) -> float | None:
    """Of the measured build nearest in size, longer in proportion where this one is larger."""
    if not runs:
        return None
    near = min(runs, key=lambda run: abs(math.log((run.weight_bytes + 1) / (weight_bytes + 1))))
    return near.seconds * max(1.0, (weight_bytes + 1) / (near.weight_bytes + 1))


def short_here(peak_bytes: int, here_bytes: int | None) -> str | None:
    """Why a build does not fit this machine's memory, with both numbers; None where it does, or nothing is known."""
    return _short(peak_bytes, "this machine", here_bytes, OWN_RESERVE_BYTES)


def short_there(peak_bytes: int, device: Target) -> str | None:
    """Why a build does not fit a device's memory; where CPU and GPU share it, the system needs some of it too."""
    memory = None if device.memory_gib is None else int(device.memory_gib * GIB)
    reserve = UNIFIED_RESERVE_BYTES if device.unified_memory else OWN_RESERVE_BYTES
    return _short(peak_bytes, device.target_id, memory, reserve)


def _short(peak_bytes: int, where: str, memory_bytes: int | None, reserve_bytes: int) -> str | None:
    if memory_bytes is None or peak_bytes + reserve_bytes <= memory_bytes:
        return None
    return (
        f"a build of it needs about {peak_bytes / GIB:.1f} GiB of memory where {where} has {memory_bytes / GIB:.1f}, "
        f"{reserve_bytes / GIB:.0f} of them for the system"
    )


def at_once(peaks_bytes: Iterable[int], jobs: int, here_bytes: int | None) -> int:
    """How many of these builds may run at the same time, at most `jobs` and at least one."""
    largest = sorted(peaks_bytes, reverse=True)
    fitting = (count for count in range(jobs, 1, -1) if short_here(sum(largest[:count]), here_bytes) is None)
    return next(fitting, 1)
