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
    """Better neighbours until there is none: one module moved, a copy more, two modules moved at once."""
    state = _State(judge, start)
    groups: list[tuple[int, ...]] = [(module,) for module in range(len(start))]
    groups += itertools.combinations(range(len(start)), 2)
    unchanged = 0
    for group in itertools.cycle(groups):
        if unchanged >= len(groups) or search.over:
            break
        unchanged = 0 if state.step(group, search) else unchanged + 1
    return with_copies(judge, state.copies, search.replicas, search.until_s)


class _State:
    """A placement with the latencies of its requests."""

    def __init__(self, judge: Judge, copies: Copies) -> None:
        self.judge, self.copies = judge, copies
        self.latencies = judge.latencies_s(copies)
        self.value = judge.value(self.latencies)
        self.users = [set(held) for held in judge.problem.users]

    def step(self, group: tuple[int, ...], search: Search) -> bool:
        """Go to the first better neighbour in which these modules differ, if there is one."""
        touched = set().union(*(self.users[module] for module in group))
        for near in neighbours(self.judge, self.copies, group, search.replicas):
            if search.over:
                return False
            fresh = {number: self.judge.request_s(number, near) for number in touched}
            if self._no_better(fresh):
                continue
            latencies = [fresh.get(number, value) for number, value in enumerate(self.latencies)]
            value = self.judge.value(latencies)
            if _less(value, self.value) and fits(self.judge.problem, near):
                self.copies, self.latencies, self.value = near, latencies, value
                return True
        return False

    def _no_better(self, fresh: dict[int, float]) -> bool:
        """What is told without looking at other requests: none is faster, or for the mean the sum is no less."""
        before = self.latencies
        if all(value >= before[number] for number, value in fresh.items()):
            return True
        if self.judge.objective != "mean" or self.value[0]:
            return False
        return sum(self.judge.weights[number] * (value - before[number]) for number, value in fresh.items()) >= 0


def _less(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    for here, there in zip(one, other, strict=True):
        if abs(here - there) > STEP * max(abs(there), STEP):
            return here < there
    return False


def neighbours(judge: Judge, copies: Copies, group: tuple[int, ...], replicas: int) -> Iterator[Copies]:
    """Placements near this one in which only one module or two differ; they may not fit."""
    one, *rest = group
    if rest:
        (two,) = rest
        together = set(judge.problem.users[one]) & set(judge.problem.users[two])
        seconds = _others(judge, copies, two)
        for first, second in itertools.product(_others(judge, copies, one), seconds):
            if together or _trades(judge, copies, (one, first), (two, second)):
                yield _put(copies, {one: first, two: second})
        return
    for held in _others(judge, copies, one):
        yield _put(copies, {one: held})
    for module, index in additions(judge.problem, copies, replicas):
        if module == one:
            yield added(copies, module, index)


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
    found = list(copies)
    for module, held in changes.items():
        found[module] = held
    return tuple(found)


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
