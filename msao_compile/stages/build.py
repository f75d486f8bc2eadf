"""Make one module's engine for one target: opened and run here by the runtime's own code, or deferred with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from msao_compile.manifest.schema import Compatibility, Dialect, Engine, Status
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import Target, find

VERSION = 1


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Open a module's graph with the target's runtime settings: resident bytes it takes, proof that the library accepts it.

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


def describe(module: str, component: str, name: str, choice: TargetChoice, passed: bool) -> Engine:
    """The manifest's entry of a module on a target: proven here for CPUs, deferred for devices only they can build for."""
    target = find(choice.device)
    here = target.platform_kind == "cpu"
    status: Status = ("parity" if passed else "ran") if here else "deferred"
    return Engine(
        module=module, target=name, backend="ort" if here else _library(target),
        precision="fp32" if here else choice.precision_of(component),  # type: ignore[arg-type]
        dialect=choice.graph_dialect, status=status, file=None,
        reason=None if here else f"{target.target_id} builds its engines with {target.engine_build}: not on this machine",
        compatibility=Compatibility(target_id=target.target_id, platform_kind=target.platform_kind,
                                    architecture=target.architecture, gpu_architecture=_sm(target)),
    )


def _library(target: Target) -> str:
    return "trt_rtx" if "rtx" in target.engine_build else "trt"


def _sm(target: Target) -> str | None:
    return None if target.sm is None else f"sm{target.sm}"
