"""The true objective: what each request takes on a placement, and what that is worth altogether.

Unloaded: encoders of a request on one device run one after another in their order, each once its input has arrived;
features travel when their encoder ends; the head starts after the last arrival; the reply goes back to the source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from msao_compile.manifest.placement import Objective
from msao_compile.place.problem import Ask, Option, Problem
from msao_compile.place.tables import table

Copies = tuple[tuple[int, ...], ...]
"""Of each module the numbers of the options that it has a copy of, rising."""
COUNTED = 0.95
FEW = 32
"""Choices of a request up to which one after another is faster than all at once."""
SLACK = 1e-9
"""Of all weight, by which what a percentile counts may fall short: sums of floats do."""


def latency_s(problem: Problem, ask: Ask, chosen: Sequence[Option]) -> float:
    """Seconds of a request whose slots run on these options, the head last; infinite where no link leads."""
    *encoders, head = chosen
    free: dict[int, float] = {}
    start = 0.0
    for number, option in enumerate(encoders):
        device = option.device
        ends = max(ask.arrivals[number][device], free.get(device, 0.0)) + option.seconds
        free[device] = ends
        start = max(start, ends + problem.features[ask.slots[number]][device][head.device])
    return start + head.seconds + ask.reply[head.device]


def total(latencies: Sequence[float], weights: Sequence[float], objective: Objective) -> float:
    """`mean`: the sum of weight x latency. `p95`: the smallest value that 95 % of the weight are at most.

    A request that cannot be answered makes both infinite, whatever its weight.
    """
    if math.inf in latencies:
        return math.inf
    if objective == "mean":
        return math.fsum(weight * value for weight, value in zip(weights, latencies, strict=True))
    wanted = COUNTED * (1 - SLACK) * math.fsum(weights)
    held = 0.0
    for value, weight in sorted(zip(latencies, weights, strict=True)):
        held += weight
        if weight > 0 and held >= wanted:
            return value
    return 0.0


@dataclass
class Judge:
    """Tells latencies of placements, and remembers what it told; each request takes its best copies."""

    problem: Problem
    objective: Objective
    _known: dict[tuple[int, Copies], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = [ask.weight for ask in self.problem.asks]

    def request_s(self, number: int, copies: Sequence[tuple[int, ...]]) -> float:
        """Seconds of one request."""
        held = tuple(copies[module] for module in self.problem.asks[number].slots)
        found = self._known.get((number, held))
        if found is None:
            found = self._known[number, held] = self.best(number, copies)[0]
        return found

    def best(self, number: int, copies: Sequence[tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
        """Seconds of one request and the option that each of its slots takes."""
        ask, options = self.problem.asks[number], self.problem.options
        if math.prod(len(copies[module]) for module in ask.slots) > FEW:
            seconds = table(self.problem, ask, copies)
            place = np.unravel_index(int(seconds.argmin()), seconds.shape)
            taken = tuple(copies[module][int(index)] for module, index in zip(ask.slots, place, strict=True))
            return float(seconds.min()), taken
        best: tuple[float, tuple[int, ...]] = (math.inf, ())
        for taken in itertools.product(*(copies[module] for module in ask.slots)):
            chosen = [options[module][index] for module, index in zip(ask.slots, taken, strict=True)]
            best = min(best, (latency_s(self.problem, ask, chosen), taken))
        return best

    def latencies_s(self, copies: Sequence[tuple[int, ...]]) -> list[float]:
        """Seconds of every request."""
        return [self.request_s(number, copies) for number in range(len(self.problem.asks))]

    def value(self, latencies: Sequence[float]) -> tuple[float, float, float]:
        """What searches compare: requests that nothing answers, the objective of the others, and between equals their
        mean.
        """
        reached = [(value, weight) for value, weight in zip(latencies, self.weights, strict=True) if value < math.inf]
        values, weights = [value for value, _ in reached], [weight for _, weight in reached]
        unanswered = float(len(latencies) - len(reached))
        return unanswered, total(values, weights, self.objective), total(values, weights, "mean")

    def objective_s(self, copies: Sequence[tuple[int, ...]]) -> float:
        """The objective of a placement."""
        return total(self.latencies_s(copies), self.weights, self.objective)


def used_bytes(problem: Problem, copies: Sequence[tuple[int, ...]]) -> list[float]:
    """Bytes that copies take of each device."""
    taken: list[list[float]] = [[] for _ in problem.room]
    for module, held in enumerate(copies):
        for index in held:
            option = problem.options[module][index]
            taken[option.device].append(option.memory_bytes)
    return [math.fsum(sizes) for sizes in taken]


def fits(problem: Problem, copies: Sequence[tuple[int, ...]]) -> bool:
    """Whether every module has a copy and no device holds more than it has room for."""
    used = used_bytes(problem, copies)
    return all(copies) and all(taken <= room for taken, room in zip(used, problem.room, strict=True))


def alone_s(problem: Problem, ask: Ask) -> float:
    """No placement answers a request sooner: every slot where it is best for it, without waiting for each other."""
    *encoders, head = ask.slots
    best = math.inf
    for last in problem.options[head]:
        start = 0.0
        for number, module in enumerate(encoders):
            start = max(start, min((
                ask.arrivals[number][option.device] + option.seconds
                + problem.features[module][option.device][last.device]
                for option in problem.options[module]
            ), default=math.inf))  # fmt: skip
        best = min(best, start + last.seconds + ask.reply[last.device])
    return best
