"""Placement one module after another: by the true objective, or merely on the fastest device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from msao_compile.place.latency import Copies, Judge, used_bytes
from msao_compile.place.problem import Ask, Problem

Rank = tuple[float | str, ...]


def compute(problem: Problem, module: int) -> float:
    """How much there is to do for a module: its mean seconds over the devices that can run it."""
    seconds = [option.seconds for option in problem.options[module]]
    return sum(seconds) / len(seconds) if seconds else math.inf


def greedy(judge: Judge, replicas: int = 1, until_s: float = math.inf) -> Copies | None:
    """Modules by compute, descending, each where the true objective grows least; ties: more free memory, then name.

    `replicas` copies of a module at most: further ones come after all have one, the best first, while they help and it
    is not yet `until_s` by `time.perf_counter`. None where some module found no room, or no placement so begun can
    answer.
    """
    problem = judge.problem

    def rank(held: list[tuple[int, ...]], module: int, index: int, free: float) -> Rank:
        option = problem.options[module][index]
        held[module] = (index,)
        latencies = [begun_s(problem, ask, held) for ask in problem.asks]
        held[module] = ()
        return (*judge.value(latencies), -(free - option.memory_bytes), problem.device_names[option.device])

    order = sorted(range(len(problem.options)), key=lambda module: -compute(problem, module))
    found = _one_each(problem, order, rank)
    if found is None or math.isinf(judge.objective_s(found)):
        return None
    return with_copies(judge, found, replicas, until_s)


def fastest(problem: Problem) -> Copies | None:
    """The baseline: modules by compute, descending, each on the fastest device with room, wherever requests come from.

    None where some module found no room.
    """

    def rank(held: list[tuple[int, ...]], module: int, index: int, free: float) -> Rank:
        option = problem.options[module][index]
        return (option.seconds, -(free - option.memory_bytes), problem.device_names[option.device])

    order = sorted(range(len(problem.options)), key=lambda module: -compute(problem, module))
    return _one_each(problem, order, rank)


def packed(problem: Problem) -> Copies | None:
    """The largest modules first, in the smallest dtype, where least stays free: a start where memory is tight."""

    def rank(held: list[tuple[int, ...]], module: int, index: int, free: float) -> Rank:
        option = problem.options[module][index]
        return (option.memory_bytes, free, problem.device_names[option.device])

    def smallest(module: int) -> float:
        return min((option.memory_bytes for option in problem.options[module]), default=0.0)

    return _one_each(problem, sorted(range(len(problem.options)), key=lambda module: -smallest(module)), rank)


def _one_each(
    problem: Problem, order: list[int], rank: Callable[[list[tuple[int, ...]], int, int, float], Rank]
) -> Copies | None:
    held: list[tuple[int, ...]] = [()] * len(problem.options)
    for module in order:
        free = [room - used for room, used in zip(problem.room, used_bytes(problem, held), strict=True)]
        ranked = [
            (rank(held, module, index, free[option.device]), index)
            for index, option in enumerate(problem.options[module])
            if option.memory_bytes <= free[option.device]
        ]
        if not ranked:
            return None
        held[module] = (min(ranked)[1],)
    return tuple(held)


def begun_s(problem: Problem, ask: Ask, held: list[tuple[int, ...]]) -> float:
    """Seconds of a request as far as its modules are placed, one copy each: what is missing takes no time."""
    chosen = [problem.options[module][held[module][0]] if held[module] else None for module in ask.slots]
    head = chosen[-1]
    free: dict[int, float] = {}
    start = 0.0
    for number, option in enumerate(chosen[:-1]):
        if option is not None:
            ends = max(ask.arrivals[number][option.device], free.get(option.device, 0.0)) + option.seconds
            free[option.device] = ends
            travel = problem.features[ask.slots[number]][option.device][head.device] if head else 0.0
            start = max(start, ends + travel)
    return start + (head.seconds + ask.reply[head.device] if head else 0.0)


def with_copies(judge: Judge, copies: Copies, replicas: int, until_s: float = math.inf) -> Copies:
    """Further copies, each the one that helps most, while one helps, there is room, and time is not up."""
    problem, found = judge.problem, copies
    value = judge.value(judge.latencies_s(found))
    while True:
        free = [room - used for room, used in zip(problem.room, used_bytes(problem, found), strict=True)]
        best, taken = value, found
        for module, index in additions(problem, found, replicas):
            option = problem.options[module][index]
            if time.perf_counter() >= until_s:
                return found
            if option.memory_bytes <= free[option.device]:
                more = added(found, module, index)
                here = judge.value(judge.latencies_s(more))
                best, taken = min((best, taken), (here, more))
        if best >= value:
            return found
        value, found = best, taken


def additions(problem: Problem, copies: Copies, replicas: int) -> list[tuple[int, int]]:
    """The copies that could be added: a module that has fewer than it may, on a device that has none of it."""
    found = []
    for module, held in enumerate(copies):
        taken = {problem.options[module][index].device for index in held}
        if len(held) < replicas and problem.users[module]:
            found += [
                (module, index) for index, option in enumerate(problem.options[module]) if option.device not in taken
            ]
    return found


def added(copies: Copies, module: int, index: int) -> Copies:
    """With one copy more."""
    return (*copies[:module], tuple(sorted((*copies[module], index))), *copies[module + 1 :])
