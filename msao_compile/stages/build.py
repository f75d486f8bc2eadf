"""Open one module's graph with the runtime's own code; and what the manifest says of each engine, built or to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from msao_compile.manifest.schema import (
    Backend,
    BuildOrder,
    Compatibility,
    Dialect,
    Engine,
    FileRef,
    Module,
    Precision,
    Status,
)
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import Target, find

MEDIA = {"vision_encoder": "picture", "video_encoder": "clip", "audio_encoder": "sound", "encoder": "sound"}
"""The word in the name of each class of requests that an encoder has a part in."""
NOT_RUN = "built without a GPU: the engine itself was neither run nor compared; its graph was, by ONNX Runtime"


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Open a module's graph with the target's runtime settings; `arguments`: path, dialect, settings.

    Raises:
        DeploymentError: the library refuses it.
    """
    from msao_compile.manifest.schema import RuntimeSettings
    from msao_compile.runtime.backends.base import EngineFile, open_engine

    settings = RuntimeSettings(**arguments["settings"])
    file = EngineFile(Path(arguments["path"]), cast("Dialect", arguments["dialect"]), settings)
    open_engine("ort", file)
    return {}


def library(device: Target) -> Backend:
    """Which backend runs a device's engines."""
    if device.engine_build == "onnxruntime":
        return "ort"
    return "trt_rtx" if "rtx" in device.engine_build else "trt"


def planned(module: Module, name: str, choice: TargetChoice, precision: Precision, order: BuildOrder | None) -> Engine:
    """The manifest's entry of an engine that nothing was done for yet: the device can make it as `order` says."""
    device = find(choice.device)
    release = choice.jetpack or max(device.jetpack, default=None)
    return Engine(
        module=module.id,
        target=name,
        backend=library(device),
        precision=precision,
        dialect=choice.graph_dialect,
        order=order,
        status="deferred",
        reason=f"{device.target_id} builds its engines with {device.engine_build}: not here",
        compatibility=Compatibility(
            target_id=device.target_id,
            platform_kind=device.platform_kind,
            architecture=device.architecture,
            gpu_architecture=None if device.sm is None else f"sm{device.sm}",
            jetpack=release,
            cuda=None if release is None else device.jetpack[release].cuda,
            tensorrt=None if release is None else device.jetpack[release].tensorrt,
        ),
    )


def opened(entry: Engine, too_large: str | None, unproven: str | None, told: str | None = None) -> Engine:
    """An engine of this machine's own backend.

    `too_large` says why it was not opened here, `unproven` why nothing proves what it computes, `told` why it has the
    precision that it has.
    """
    status: Status = "deferred" if too_large else "ran" if unproven else "parity"
    return entry.model_copy(update={"status": status, "reason": too_large or unproven or told})


def built(entry: Engine, file: FileRef, found: Mapping[str, Any], unproven: str | None) -> Engine:
    """An engine file that was built ahead of time; of its graph `unproven` says why it was not compared."""
    reason = NOT_RUN if unproven is None else f"built without a GPU, and its graph was not proven either: {unproven}"
    told = entry.compatibility.model_copy(update={"tensorrt": found["library_version"]})
    return entry.model_copy(update={"status": "built", "file": file, "reason": reason, "compatibility": told})


def file_name(component: str, entry: Engine, found: Mapping[str, Any]) -> str:
    """`<component>.<precision>.<target>.<backend><version>.engine`."""
    version = str(found["library_version"])
    return f"{component}.{entry.precision}.{entry.target}.{entry.backend}{version}.engine"
