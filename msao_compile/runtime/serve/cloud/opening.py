"""A deployment as what a cloud server serves."""

from __future__ import annotations

from pathlib import Path

from msao_compile.errors import InputError
from msao_compile.manifest.schema import Deployment, Dialect, Model
from msao_compile.runtime.api import Runtime, load
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.device import Device
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.serve.cloud.served import Served
from msao_compile.runtime.session import ModelSession


def cloud_model(deployment: Deployment, name: str | None) -> Model:
    """The model called `name`, or the one that the deployment's routes place in the cloud.

    Raises:
        InputError: there is no such model, or not one such model, or it decodes nothing.
    """
    known = {model.name: model for model in deployment.models}
    placed = dict.fromkeys(route.model for route in deployment.routes if "cloud" in route.hosts.values())
    if name is None and len(placed) != 1:
        told = f"its routes place {', '.join(placed)} there" if placed else "its routes place none there"
        raise InputError(
            f"which model of {deployment.name} to serve is not clear ({told}): name one of {', '.join(known)}"
        )
    chosen = known.get(name or next(iter(placed)))
    if chosen is None:
        raise InputError(f"model {name!r} is not one of {deployment.name}: choose {', '.join(known)}")
    if chosen.decoder is None:
        raise InputError(f"model {chosen.name!r} writes no answers: a cloud serves models that do")
    return chosen


def prefill_inputs(deployment: Deployment, model: Model) -> dict[str, tuple[str, int]]:
    """NumPy type and rank of every array that `prefill` may bring beside pictures: what the model's modules take and
    give, their states left out, and the tokens themselves [tokens].
    """
    known: dict[str, tuple[str, int]] = {}
    wanted = set(model.components.values())
    for graph in (graph for module in deployment.modules if module.id in wanted for graph in module.graphs):
        states = {name for state in graph.states for name in (state.name, state.output)}
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name not in states and spec.shape:
                known.setdefault(spec.name, (spec.dtype, len(spec.shape)))
    if model.decoder is not None:
        known[model.decoder.tokens] = ("int64", 1)
    return known


def batched(deployment: Deployment, model: Model) -> Dialect | None:
    """The dialect whose decoder takes rows of different lengths side by side, where it was proven for CPUs."""
    proven = [
        engine
        for engine in deployment.engines
        if engine.module == model.components["decoder"] and engine.dialect == "scatter" and engine.backend == "ort"
        and engine.status in ("parity", "qualified") and engine.compatibility.platform_kind == "cpu"
    ]  # fmt: skip
    return "scatter" if proven else None


def served_session(runtime: Runtime, model: Model, sessions: int) -> ModelSession:
    """A model as a cloud of so many sessions runs it: rows side by side where that was proven.

    Raises:
        DeploymentError, MissingTool: as `Runtime.session`.
    """
    dialect = batched(runtime.deployment, model) if sessions > 1 else None
    folder, deployment = runtime.folder, runtime.deployment
    engines = runtime.engines if dialect is None else Engines(folder, deployment, True, dialect=dialect)
    return engines.session(model)


def open_deployment(
    folder: Path, model: str | None, limits: CloudLimits, device: Device | None = None
) -> tuple[CloudService, Served]:
    """Load a deployment's model and make it what is served; to be called in the event loop that serves.

    `device`: another than that which runs here as fast as it can.

    Raises:
        InputError: as `cloud_model`. DeploymentError, MissingTool: as `Runtime.session`.
    """
    runtime: Runtime = load(folder)
    chosen = cloud_model(runtime.deployment, model)
    service = CloudService(served_session(runtime, chosen, limits.sessions), limits, device)
    inputs = prefill_inputs(runtime.deployment, chosen)
    return service, Served(chosen.name, service.handle, inputs, service.gauges)
