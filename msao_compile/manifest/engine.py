"""Engines: what one is built from, where it may run, and how far it was proven."""

from __future__ import annotations

from typing import Literal

from msao_compile.manifest.frozen import FileRef, Frozen, Sha256

Dialect = Literal["portable", "scatter", "fused"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4"]
Backend = Literal["ort", "trt", "trt_rtx"]
Status = Literal["deferred", "built", "ran", "parity", "qualified"]


class Compatibility(Frozen):
    """Where an engine may run; a tuple, never one number. `None` = does not matter for this backend."""

    target_id: str
    os: str | None = None
    architecture: str | None = None
    platform_kind: Literal["jetson", "discrete", "cpu"]
    gpu_architecture: str | None = None
    gpu_name: str | None = None
    gpu_memory_mib: int | None = None
    jetpack: str | None = None
    l4t: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None


class ShapeRange(Frozen):
    """The shapes that one input may have: smallest, the one to be fastest at, largest."""

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class ShapeProfile(Frozen):
    """One optimisation profile: a range for every input whose shape varies."""

    name: Literal["encode", "prefill", "decode"]
    inputs: tuple[ShapeRange, ...]


class BuildOrder(Frozen):
    """What decides an engine's bytes besides graph, weights and the library that builds.

    `compute_capabilities` are those to build ahead of time for, as 89 for SM 8.9; none means the GPU that builds.
    `timing_cache` is the digest of the one that must be used.
    """

    backend: Backend
    profiles: tuple[ShapeProfile, ...]
    level: Literal["draft", "release"] = "release"
    compute_capabilities: tuple[int, ...] = ()
    timing_cache: Sha256 | None = None


class Engine(Frozen):
    """One module compiled for one target, with how far it was proven.

    `order` says how `file` was built, or how the device is to build it where the status is `deferred`.
    """

    module: Sha256
    target: str
    backend: Backend
    precision: Precision
    dialect: Dialect
    order: BuildOrder | None = None
    status: Status
    file: FileRef | None = None
    reason: str | None = None
    compatibility: Compatibility
