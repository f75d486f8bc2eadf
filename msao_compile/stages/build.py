"""Make one module's engine for one target: opened here by the runtime's own code, or deferred with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from msao_compile.manifest.schema import Backend, Compatibility, Dialect, Engine, Module, Status
from msao_compile.recipe.schema import Component, TargetChoice
from msao_compile.recipe.targets import Target, find


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


def describe(
    module: Module, name: str, choice: TargetChoice, too_large: str | None = None, unproven: str | None = None
) -> Engine:
    """The manifest's entry of a module that was opened here, or is deferred to its device.

    `too_large` says why it was not opened here, `unproven` why nothing proves what it computes.
    """
    target = find(choice.device)
    here = target.platform_kind == "cpu"
    status: Status = "deferred" if too_large or not here else "ran" if unproven else "parity"
    elsewhere = f"{target.target_id} builds its engines with {target.engine_build}: not here"
    reasons = {"deferred": too_large if here else elsewhere, "ran": unproven}
    return Engine(
        module=module.id,
        target=name,
        backend="ort" if here else _library(target),
        precision="fp32" if here else choice.precision_of(cast("Component", module.component)),
        dialect=choice.graph_dialect,
        status=status,
        reason=reasons.get(status),
        compatibility=Compatibility(
            target_id=target.target_id,
            platform_kind=target.platform_kind,
            architecture=target.architecture,
            gpu_architecture=None if target.sm is None else f"sm{target.sm}",
        ),
    )


def _library(target: Target) -> Backend:
    return "trt_rtx" if "rtx" in target.engine_build else "trt"
