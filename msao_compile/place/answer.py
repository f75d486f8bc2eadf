"""What a placement says to whoever asked: the answer of `place --json`, and its sentences."""

from __future__ import annotations

from typing import Any

from msao_compile.place.certify import Placed
from msao_compile.place.latency import Judge, total, used_bytes


def facts(placed: Placed, objective: str) -> dict[str, Any]:
    """The answer. `placement` has for each module its device, or a list where it has several copies; `copies` has the
    dtypes; `latency_s` each request with the devices that it uses.
    """
    told = placed.certificate
    found: dict[str, Any] = {
        "feasible": told is not None, "reason": placed.reason, "placement": None, "objective": objective,
        "objective_s": None, "bound_s": None, "gap": None, "solver": None, "seconds": placed.seconds,
        "greedy_objective_s": placed.greedy_objective_s, "proven": placed.proven,
        "changes": [change.facts() for change in placed.changes],
        "certificate": None, "mean_latency_s": None, "copies": [], "latency_s": [], "devices": [],
    }  # fmt: skip
    if told is None or placed.copies is None:
        return found
    latencies = requests(placed)
    weights = [ask.weight for ask in placed.problem.asks]
    weighed = total([entry["seconds"] for entry in latencies], weights, "mean")
    return found | {
        "placement": by_module(placed), "objective_s": told.objective_s, "bound_s": told.bound_s, "gap": told.gap,
        "solver": told.solver, "certificate": told.model_dump(mode="json"), "copies": copies(placed),
        "mean_latency_s": weighed / sum(weights) if sum(weights) > 0 else None,
        "latency_s": latencies, "devices": devices(placed),
    }  # fmt: skip


def copies(placed: Placed) -> list[dict[str, Any]]:
    """Every copy, by device."""
    problem = placed.problem
    found = [
        {"module": name, "device": problem.device_names[options[index].device], "dtype": options[index].dtype or None,
         "memory_bytes": options[index].memory_bytes}
        for name, options, held in zip(problem.module_names, problem.options, placed.copies or (), strict=True)
        for index in held
    ]  # fmt: skip
    order = {name: number for number, name in enumerate(problem.device_names)}
    return sorted(found, key=lambda copy: order[copy["device"]])


def by_module(placed: Placed) -> dict[str, str | list[str]]:
    """The device of each module; a list where there are several copies."""
    found: dict[str, list[str]] = {name: [] for name in placed.problem.module_names}
    for copy in copies(placed):
        found[copy["module"]].append(copy["device"])
    return {name: held[0] if len(held) == 1 else held for name, held in found.items()}


def devices(placed: Placed) -> list[dict[str, Any]]:
    """Memory of each device."""
    problem = placed.problem
    used = used_bytes(problem, placed.copies or ())
    return [
        {"name": name, "memory_bytes": room, "used_bytes": taken, "free_bytes": room - taken}
        for name, room, taken in zip(problem.device_names, problem.room, used, strict=True)
    ]


def requests(placed: Placed) -> list[dict[str, Any]]:
    """Each request with its seconds and where its encoders, in order, and its head run."""
    problem = placed.problem
    judge, found = Judge(problem, "mean"), []
    for number, (request, ask) in enumerate(zip(problem.instance.requests, problem.asks, strict=True)):
        value, taken = judge.best(number, placed.copies or ())
        used = [
            problem.device_names[problem.options[module][index].device]
            for module, index in zip(ask.slots, taken, strict=True)
        ]
        found.append({
            "task": request.task, "source": request.source, "weight": request.weight, "seconds": value,
            "encoders": used[:-1], "head": used[-1],
        })  # fmt: skip
    return found
