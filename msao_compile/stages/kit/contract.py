"""What a kit orders, computed from the manifest alone: its digest ties a receipt to the deployment that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from msao_compile.errors import DeploymentError, InputError
from msao_compile.manifest.digest import canonical_json
from msao_compile.manifest.schema import Deployment, Engine, Graph, Model, Module
from msao_compile.recipe.asked import refuse_unknown

FIXED = {"target_id", "platform_kind", "gpu_architecture"}
"""What of the compatibility tuple belongs to the contract: the rest changes once a receipt was accepted."""


def ordered(deployment: Deployment, target: str) -> tuple[Engine, ...]:
    """The engines of a target that its device builds, in the manifest's order.

    Raises:
        InputError: the deployment has no such target, or this one needs no kit.
        DeploymentError: an engine has no order.
    """
    of_target = [engine for engine in deployment.engines if engine.target == target]
    names = dict.fromkeys(engine.target for engine in deployment.engines)
    refuse_unknown("target", target, names, "this deployment has")
    found = tuple(engine for engine in of_target if engine.backend != "ort")
    if not found:
        raise InputError(f"--target {target}: ONNX Runtime opens its graphs as they are, so it needs no kit")
    for engine in found:
        if engine.order is None:
            raise DeploymentError(
                f"the engine of {name_of(deployment, engine)} for {target} has no build order in this manifest; build "
                "the deployment again"
            )
    return found


def contract(deployment: Deployment, target: str) -> dict[str, Any]:
    """Target, compatibility, and per module the order with the digests of graph and weights; raises as `ordered`."""
    engines = ordered(deployment, target)
    return {
        "deployment": deployment.name,
        "target": target,
        "compatibility": engines[0].compatibility.model_dump(mode="json", exclude_none=True, include=FIXED),
        "modules": [_order(deployment, engine) for engine in engines],
    }


def kit_id(content: dict[str, Any]) -> str:
    """The digest of a contract."""
    return sha256(canonical_json(content)).hexdigest()


def graph_of(deployment: Deployment, engine: Engine) -> Graph:
    """The graph that an engine is built from.

    Raises:
        DeploymentError: the deployment has none in the engine's dialect and precision.
    """
    graphs = deployment.module(engine.module).graphs
    for graph in graphs:
        if (graph.dialect, graph.precision) == (engine.dialect, engine.precision):
            return graph
    there = ", ".join(f"{graph.dialect} {graph.precision}" for graph in graphs) or "none"
    raise DeploymentError(
        f"{name_of(deployment, engine)} has no graph in dialect {engine.dialect} and precision {engine.precision} "
        f"(there is {there}); build the deployment again for this target"
    )


def header_facts(deployment: Deployment, engine: Engine) -> dict[str, Any]:
    """What the header of an engine's file must say for it to be this engine; raises as `graph_of`."""
    known = engine.compatibility
    gpus = [f"sm{sm}" for sm in engine.order.compute_capabilities] if engine.order is not None else []
    if not gpus and known.gpu_architecture is not None:
        gpus = [known.gpu_architecture]
    return {
        "backend": engine.backend,
        "module": engine.module,
        "component": deployment.module(engine.module).component,
        "precision": engine.precision,
        "dialect": engine.dialect,
        "graph_sha256": graph_of(deployment, engine).file.sha256,
        **({} if engine.order is None else {"order": engine.order.model_dump(mode="json")}),
        **({} if not gpus else {"gpu_architectures": gpus}),
    }


def owners(deployment: Deployment, module: Module) -> Iterator[Model]:
    """The models that have a module."""
    return (model for model in deployment.models if module.id in model.components.values())


def name_of(deployment: Deployment, engine: Engine) -> str:
    """`<model>/<component>`, after the first model that has the module."""
    module = deployment.module(engine.module)
    model = next(owners(deployment, module), None)
    return f"{'shared' if model is None else model.name}/{module.component}"


def _order(deployment: Deployment, engine: Engine) -> dict[str, Any]:
    graph = graph_of(deployment, engine)
    order = None if engine.order is None else engine.order.model_dump(mode="json")
    return {
        "name": name_of(deployment, engine),
        "module": engine.module,
        "component": deployment.module(engine.module).component,
        "backend": engine.backend,
        "precision": engine.precision,
        "dialect": engine.dialect,
        "order": order,
        "graph": graph.file.model_dump(mode="json"),
        "data": [reference.model_dump(mode="json") for reference in graph.data],
    }
