"""Make one module's engine for one target: opened here by the runtime's own code, or deferred with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from msao_compile.manifest.schema import Compatibility, Dialect, Engine
from msao_compile.recipe.schema import Component, TargetChoice
from msao_compile.recipe.targets import Target, find


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Open a module's graph with the target's runtime settings: the library accepts it, and it takes so many bytes.

    `arguments`: path, dialect, settings. Raises DeploymentError when the library refuses it.
    """
    import psutil

    from msao_compile.manifest.schema import RuntimeSettings
    from msao_compile.runtime.backends.base import EngineFile, open_engine

    process = psutil.Process()
    settings = RuntimeSettings(**arguments["settings"])
    file = EngineFile(Path(arguments["path"]), cast("Dialect", arguments["dialect"]), settings)
    before = process.memory_info().rss
    engine = open_engine("ort", file)
    after = process.memory_info().rss
    del engine
    return {"resident_bytes": max(0, after - before)}


def describe(module: str, component: str, name: str, choice: TargetChoice) -> Engine:
    """The manifest's entry of a module on a target, after parity passed: proven here, or deferred to its device."""
    target = find(choice.device)
    here = target.platform_kind == "cpu"
    return Engine(
        module=module,
        target=name,
        backend="ort" if here else _library(target),
        precision="fp32" if here else choice.precision_of(cast("Component", component)),
        dialect=choice.graph_dialect,
        status="parity" if here else "deferred",
        reason=None if here else f"{target.target_id} builds its engines with {target.engine_build}: not here",
        compatibility=Compatibility(
            target_id=target.target_id,
            platform_kind=target.platform_kind,
            architecture=target.architecture,
            gpu_architecture=None if target.sm is None else f"sm{target.sm}",
        ),
    )


def _library(target: Target) -> str:
    return "trt_rtx" if "rtx" in target.engine_build else "trt"
