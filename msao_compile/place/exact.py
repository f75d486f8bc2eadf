"""The exact program: its optimum is the true objective's, by products of choices instead of large constants.

Unrolled, encoder i of a request ends at the largest, over every j <= i on its device, of "input of j has arrived, then
all from j to i run". So a request takes at least, for every such chain,

    arrival of j + seconds of those from j to i on i's device + travel of i's features + seconds of the head + reply

and exactly the largest of them. Travel depends on two devices: `z` is the share of (device of i, device of the head),
whose sums over either are the choices themselves. Who shares a device with i is a product as well, bounded from below.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from msao_compile.manifest.placement import Objective
from msao_compile.place.choice import Choice
from msao_compile.place.latency import COUNTED, SLACK, Copies, Judge, alone_s, fits
from msao_compile.place.milp import Program, Solved, solve
from msao_compile.place.problem import Ask, Option, Problem

Terms = dict[int, float]


@dataclass(frozen=True)
class Found:
    """What an exact search ended with; `bound_s` is infinite where no placement can be."""

    copies: Copies | None
    bound_s: float
    infeasible: bool


class Exact:
    """The program of a problem."""

    def __init__(self, problem: Problem, objective: Objective, replicas: int) -> None:
        self.problem, self.replicas = problem, replicas
        self.program = Program()
        self.choice = Choice(self.program, problem, replicas)
        self._travels: dict[Hashable, dict[tuple[int, int], int]] = {}
        self._beside: dict[Hashable, list[tuple[Option, int]]] = {}
        self.least_s = [alone_s(problem, ask) for ask in problem.asks]
        self.scale_s = max((value for value in self.least_s if math.isfinite(value)), default=1.0) or 1.0
        self.heaviest = max(ask.weight for ask in problem.asks) or 1.0
        self.answered: list[int] = []
        """By request the column that counts it in a percentile."""
        for number, ask in enumerate(problem.asks):
            self._only_reachable(number, ask)
        spent = [self._request(number, ask) for number, ask in enumerate(problem.asks)]
        self.unit_s = self.scale_s * (self.heaviest if objective == "mean" else 1.0)
        if objective == "mean":
            for column, ask in zip(spent, problem.asks, strict=True):
                self.program.costs[column] = ask.weight / self.heaviest
        else:
            self._percentile(spent)

    def start(self, judge: Judge, copies: Copies) -> Terms:
        """The whole columns of a placement."""
        taken = [judge.best(number, copies)[1] for number in range(len(self.problem.asks))]
        found = self.choice.start(copies, taken)
        if self.answered:
            latencies = judge.latencies_s(copies)
            limit = judge.objective_s(copies) * (1 + SLACK)
            found |= {
                column: float(value <= limit) for column, value in zip(self.answered, latencies, strict=True)
            }  # fmt: skip
        return found

    def _only_reachable(self, number: int, ask: Ask) -> None:
        last = len(ask.slots) - 1
        for place in range(len(ask.slots)):
            for option, column in self.choice.options(number, place):
                waits = ask.reply if place == last else ask.arrivals[place]
                if math.isinf(waits[option.device]):
                    self.choice.forbid(column)

    def _request(self, number: int, ask: Ask) -> int:
        """The column of a request's seconds, in units of `scale_s`, above every chain of its encoders."""
        spent = self.program.column(lower=min(self.least_s[number] / self.scale_s, 1.0))
        last = len(ask.slots) - 1
        head: Terms = {}
        for option, column in self.choice.options(number, last):
            if math.isfinite(ask.reply[option.device]):
                head[column] = option.seconds + ask.reply[option.device]
        self._above(spent, head)
        for place in range(last):
            ends = self._own(number, ask, place)
            for column, value in head.items():
                ends[column] += value
            self._above(spent, _sum(ends, self._arrives(number, ask, place)))
            for begins, before in self._chains(number, ask, place):
                ends = _sum(ends, before)
                self._above(spent, _sum(ends, begins))
        return spent

    def _own(self, number: int, ask: Ask, place: int) -> Terms:
        """An encoder's own seconds and the travel of its features."""
        found: Terms = defaultdict(float)
        for option, column in self.choice.options(number, place):
            found[column] += option.seconds
        table = self.problem.features[ask.slots[place]]
        for (start, end), column in self._travel(number, ask, place).items():
            found[column] += table[start][end]
        return found

    def _arrives(self, number: int, ask: Ask, place: int) -> Terms:
        waits = ask.arrivals[place]
        return {
            column: waits[option.device]
            for option, column in self.choice.options(number, place)
            if math.isfinite(waits[option.device])
        }

    def _chains(self, number: int, ask: Ask, place: int) -> Iterator[tuple[Terms, Terms]]:
        """For each encoder before this one, from the last on: when its input has arrived, and what it takes, both only
        where it shares the device.
        """
        for other in range(place - 1, -1, -1):
            beside = self._shares(number, ask, (other, place))
            waits = ask.arrivals[other]
            begins = {column: waits[option.device] for option, column in beside if math.isfinite(waits[option.device])}
            yield begins, {column: option.seconds for option, column in beside}

    def _shares(self, number: int, ask: Ask, pair: tuple[int, int]) -> list[tuple[Option, int]]:
        """By option of an earlier encoder a column that is 1 where it is taken on the device of the later one."""
        modules = tuple(ask.slots[place] for place in pair)
        key: Hashable = (number, *pair) if self.replicas > 1 else modules
        if key not in self._beside:
            there = self.choice.on_device(number, pair[1])
            found = []
            for option, column in self.choice.options(number, pair[0]):
                if option.device in there:
                    both = self.program.column(1.0)
                    terms = {column: 1.0, **dict.fromkeys(there[option.device], 1.0)}
                    if modules[0] == modules[1] and self.replicas == 1:
                        terms = {column: 2.0}  # the same copy is always beside itself
                    self.program.row({**terms, both: -1.0}, upper=1.0)
                    found.append((option, both))
            self._beside[key] = found
        return self._beside[key]

    def _travel(self, number: int, ask: Ask, place: int) -> dict[tuple[int, int], int]:
        """By the devices of an encoder and the head a column that is 1 where they are there; none where no link is."""
        last = len(ask.slots) - 1
        key: Hashable = (number, place) if self.replicas > 1 else (ask.slots[place], ask.slots[last])
        if key not in self._travels:
            starts, ends = self.choice.on_device(number, place), self.choice.on_device(number, last)
            table = self.problem.features[ask.slots[place]]
            found = {
                (start, end): self.program.column(1.0)
                for start in starts for end in ends if math.isfinite(table[start][end])
            }  # fmt: skip
            for side, columns in ((0, starts), (1, ends)):
                for device, terms in columns.items():
                    pairs = {column: -1.0 for pair, column in found.items() if pair[side] == device}
                    self.program.row({**terms, **pairs}, 0.0, 0.0)
            self._travels[key] = found
        return self._travels[key]

    def _above(self, spent: int, terms: Terms) -> None:
        self.program.row({spent: 1.0, **{column: -value / self.scale_s for column, value in terms.items()}}, lower=0.0)

    def _percentile(self, spent: list[int]) -> None:
        """The objective is at least what each request that counts takes, and those that count weigh enough."""
        weights = [ask.weight for ask in self.problem.asks]
        all_weight = math.fsum(weights)
        limit = self.program.column(cost=1.0)
        self.answered = [self.program.switch() for _ in spent]
        for number, (column, counts) in enumerate(zip(spent, self.answered, strict=True)):
            most = max(self._most_s(self.problem.asks[number]) / self.scale_s - self.program.lower[column], 0.0)
            most += self.program.lower[column]
            self.program.row({limit: 1.0, column: -1.0, counts: -most}, lower=-most)
        if all_weight > 0:
            shares = {column: weight / all_weight for column, weight in zip(self.answered, weights, strict=True)}
            self.program.row(shares, lower=COUNTED * (1 - SLACK))

    def _most_s(self, ask: Ask) -> float:
        """No placement that answers takes longer."""
        encoders = ask.slots[:-1]
        waits = [value for row in ask.arrivals for value in row if math.isfinite(value)]
        travels = [value for slot in encoders for row in self.problem.features[slot] for value in row]
        runs = [max((option.seconds for option in self.problem.options[slot]), default=0.0) for slot in ask.slots]
        replies = [value for value in ask.reply if math.isfinite(value)]
        return (
            max(waits, default=0.0)
            + max((value for value in travels if math.isfinite(value)), default=0.0)
            + math.fsum(runs)
            + max(replies, default=0.0)
        )


def _sum(one: Terms, other: Terms) -> Terms:
    found: Terms = defaultdict(float, one)
    for column, value in other.items():
        found[column] += value
    return found


def exact(judge: Judge, replicas: int, limit_s: float, known: Copies | None = None) -> Found:
    """The best placement that HiGHS finds in so many seconds, from a known one on, and what none can be better than.

    Raises:
        MissingTool: HiGHS is not installed.
    """
    if not all(judge.problem.options) or any(math.isinf(alone_s(judge.problem, ask)) for ask in judge.problem.asks):
        return Found(None, math.inf, True)
    began_s = time.perf_counter()
    model = Exact(judge.problem, judge.objective, replicas)
    begins = model.start(judge, known) if known is not None else None
    ended: Solved = solve(model.program, limit_s - (time.perf_counter() - began_s), begins)
    if ended.status == "infeasible":
        return Found(None, math.inf, True)
    copies = None if ended.values is None else model.choice.read(dict(enumerate(ended.values)))
    if copies is not None and not fits(judge.problem, copies):  # by less than HiGHS can see: then it is no placement
        copies = None
    return Found(copies, max(ended.bound, 0.0) * model.unit_s, False)
