"""The catalogue of devices a deployment can be built for."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

from msao_compile.errors import RecipeError
from msao_compile.manifest.schema import Dialect

PlatformKind = Literal["jetson", "discrete", "cpu"]
EngineBuild = Literal["on-device tensorrt", "tensorrt_rtx ahead-of-time", "onnxruntime"]


class JetPack(BaseModel):
    """The libraries one JetPack release brings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    cuda: str
    tensorrt: str


class Target(BaseModel):
    """What is known of a device before it is asked; None is "not known", and a build checks what the driver reports."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    target_id: str
    platform_kind: PlatformKind
    architecture: str | None
    """CPU architecture (`x86_64`, `aarch64`); None for `local-cpu` and `local-cuda`, which are whatever
    this machine and its NVIDIA GPU are."""
    sm: int | None
    """CUDA compute capability without the dot; None for `local-cuda`, whose driver says it."""
    memory_gib: float | None
    """Memory of the GPU, or of the whole module where `unified_memory`."""
    bandwidth_gb_s: float | None
    fp16_dense_tflops: float | None
    fp8_dense_tflops: float | None
    engine_build: EngineBuild
    unified_memory: bool
    dla_cores: int
    jetpack: Mapping[str, JetPack]
    """JetPack release → its libraries; empty where there is no JetPack."""
    dialect: Dialect
    """The graph dialect a recipe gets when it does not choose one."""


@cache
def catalogue() -> tuple[Target, ...]:
    """Every known target, in the order of the data file."""
    rows = json.loads(resources.files(__package__).joinpath("targets.json").read_text(encoding="utf-8"))
    return tuple(Target.model_validate(row) for row in rows["targets"])


def find(name: str) -> Target:
    """The target called `name`.

    Raises:
        RecipeError: there is none; the message offers the nearest names.
    """
    known = {target.target_id: target for target in catalogue()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    offer = f"did you mean {_any_of(near)}?" if near else f"known are {', '.join(sorted(known))}"
    raise RecipeError(f"'{name}' is not in the target catalogue; {offer}")


def _any_of(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
