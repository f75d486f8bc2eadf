"""Local search: from a placement to a better neighbour until there is none, or time is up."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from msao_compile.place.greedy import added, additions, with_copies
from msao_compile.place.latency import Copies, Judge, fits

SHAKEN = 3
"""Modules that a shake moves."""
STEP = 1e-12
"""What a neighbour must be better by, relative: rounding is no progress."""


@dataclass(frozen=True)
class Search:
    """How a search goes on: copies of a module at most, and the `time.perf_counter` at which it ends."""

    replicas: int
    until_s: float

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return time.perf_counter() >= self.until_s


def improved(judge: Judge, start: Copies, search: Search) -> Copies:
    """The first better neighbour again and again: one module moved, two moved at once, a copy more or less."""
    found, latencies = start, judge.latencies_s(start)
    value = judge.value(latencies)
    better = True
    while better and not search.over:
        better = False
        for touched, near in neighbours(judge, found, search):
            fresh = list(latencies)
            for number in touched:
                fresh[number] = judge.request_s(number, near)
            here = judge.value(fresh)
            if _less(here, value) and fits(judge.problem, near):
                found, latencies, value, better = near, fresh, here, True
                break
            if search.over:
                break
    return with_copies(judge, found, search.replicas)


def _less(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    for here, there in zip(one, other, strict=True):
        if abs(here - there) > STEP * max(abs(there), STEP):
            return here < there
    return False


Neighbour = tuple[set[int], Copies]


def neighbours(judge: Judge, copies: Copies, search: Search) -> Iterator[Neighbour]:
    """Placements near this one, with the requests that they touch; they may not fit."""
    problem = judge.problem
    users = [set(held) for held in problem.users]
    for module in range(len(copies)):
        for held in _others(judge, copies, module):
            yield users[module], _put(copies, {module: held})
    for module, index in additions(problem, copies, search.replicas):
        yield users[module], added(copies, module, index)
    for module, held in enumerate(copies):
        for index in held if len(held) > 1 else ():
            yield users[module], _put(copies, {module: tuple(other for other in held if other != index)})
    for one, two in itertools.combinations(range(len(copies)), 2):
        together = users[one] | users[two]
        for first, second in itertools.product(_others(judge, copies, one), _others(judge, copies, two)):
            if users[one] & users[two] or _trades(judge, copies, (one, first), (two, second)):
                yield together, _put(copies, {one: first, two: second})


def _others(judge: Judge, copies: Copies, module: int) -> list[tuple[int, ...]]:
    """A module's copies with one of them on another device or in another dtype."""
    options, found = judge.problem.options[module], []
    for gone in copies[module]:
        rest = tuple(index for index in copies[module] if index != gone)
        taken = {options[index].device for index in rest}
        found += [
            tuple(sorted((*rest, index)))
            for index, option in enumerate(options)
            if index != gone and option.device not in taken
        ]
    return found


def _trades(judge: Judge, copies: Copies, one: tuple[int, tuple[int, ...]], two: tuple[int, tuple[int, ...]]) -> bool:
    """Whether one module goes to where the other was: the only way in which strangers need each other's move."""
    (module, first), (other, second) = one, two
    return bool(_devices(judge, module, first) & _devices(judge, other, copies[other])) or bool(
        _devices(judge, other, second) & _devices(judge, module, copies[module])
    )


def _devices(judge: Judge, module: int, held: tuple[int, ...]) -> set[int]:
    return {judge.problem.options[module][index].device for index in held}


def _put(copies: Copies, changes: dict[int, tuple[int, ...]]) -> Copies:
    return tuple(changes.get(module, held) for module, held in enumerate(copies))


def pruned(judge: Judge, copies: Copies) -> Copies:
    """Without copies that no request takes; each module keeps one."""
    taken: list[set[int]] = [set() for _ in copies]
    for number, ask in enumerate(judge.problem.asks):
        for module, index in zip(ask.slots, judge.best(number, copies)[1], strict=True):
            taken[module].add(index)
    return tuple(tuple(sorted(used)) if used else held[:1] for used, held in zip(taken, copies, strict=True))


def shaken(judge: Judge, copies: Copies, chance: random.Random) -> Copies:
    """Some modules moved at random where they fit: a start that is not in the same valley."""
    found = copies
    for module in chance.sample(range(len(copies)), min(SHAKEN, len(copies))):
        others = [held for held in _others(judge, found, module) if fits(judge.problem, _put(found, {module: held}))]
        if others:
            found = _put(found, {module: chance.choice(others)})
    return found
