"""The exact program with a column for every way to answer a request: a sharper bound for many modules and devices.

There are too many ways to write down, so a linear program of some is solved, and those that its prices make worth while
are added until none is (column generation). Then no placement is below its objective, and a way whose reduced cost is
above what separates the best known placement from that bound is in no better placement. Only the others are put into
the program in whole numbers; where even they are too many, the bound says so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from msao_compile.place.choice import Choice
from msao_compile.place.latency import Copies, Judge
from msao_compile.place.milp import Growing, Program, solve

AT_ONCE = 40
"""Ways of a request that a round adds, at most."""
SEEN = 1e-9
"""Reduced costs above minus this are none."""

Way = tuple[int, int]
"""A request, and the place of a choice in its flattened table."""


@dataclass(frozen=True)
class Priced:
    """Prices at their end: nothing is below `bound`; `reduced` are the reduced costs of each request's ways."""

    bound: float
    reduced: list[np.ndarray]


class Ways:
    """The programs of a problem whose requests cost `costs` by choice, in the shape of `tables.table`.

    `known` is a placement, and what costs more than `most` altogether is of no interest.
    """

    def __init__(self, judge: Judge, replicas: int, known: Copies, costs: list[np.ndarray], most: float) -> None:
        self.judge, self.replicas, self.known = judge, replicas, known
        self.costs, self.most = costs, most
        self.program, self.choice = self._copies()
        self.ways: dict[Way, None] = {}
        self._near()

    def _copies(self) -> tuple[Program, Choice]:
        """The program without any way: copies within memory, a row for each request, and one for each option of a slot:
        ways that use it are as many as its copy at most.
        """
        program = Program()
        choice = Choice(program, self.judge.problem, self.replicas, slots=False)
        self.rows: list[tuple[int, list[int]]] = []
        lower = 0.0 if self.replicas == 1 else -math.inf
        for ask in self.judge.problem.asks:
            one = len(program.rows)
            program.row({}, 1.0, 1.0)
            starts = []
            for module in ask.slots:
                starts.append(len(program.rows))
                for copy in choice.copies[module]:
                    program.row({copy: -1.0}, lower, 0.0)
            self.rows.append((one, starts))
        return program, choice

    def _near(self) -> None:
        """To begin with: the ways of the known placement, and those that differ from them in one slot."""
        for number, ask in enumerate(self.judge.problem.asks):
            taken = self.judge.best(number, self.known)[1]
            self._add(number, taken)
            for place, module in enumerate(ask.slots):
                for index in range(len(self.judge.problem.options[module])):
                    self._add(number, (*taken[:place], index, *taken[place + 1 :]))

    def _add(self, number: int, taken: tuple[int, ...]) -> None:
        if math.isfinite(self.costs[number][taken]):
            self.ways[number, int(np.ravel_multi_index(taken, self.costs[number].shape))] = None

    def column(self, way: Way) -> tuple[float, list[int]]:
        """A way's cost and the rows that it is in, once each."""
        number, flat = way
        one, starts = self.rows[number]
        taken = np.unravel_index(flat, self.costs[number].shape)
        rows = [one, *(start + int(index) for start, index in zip(starts, taken, strict=True))]
        return float(self.costs[number].ravel()[flat]), rows

    def priced(self, until_s: float) -> Priced | None:
        """Add ways until none is worth while, all is ruled out, or time is up; None where no round came to its end."""
        growing = Growing(self.program)
        growing.grow([self.column(way) for way in self.ways])
        best: Priced | None = None
        while True:
            value, duals = growing.solve(until_s - time.perf_counter())
            if duals is None:
                return best
            reduced = [self._reduced(number, duals) for number in range(len(self.costs))]
            bound = value + sum(min(0.0, float(costs.min())) for costs in reduced) - SEEN
            if best is None or bound > best.bound:
                best = Priced(bound, reduced)
            fresh = [way for number, costs in enumerate(reduced) for way in self._worth(number, costs)]
            if not fresh or best.bound > self.most or time.perf_counter() >= until_s:
                return best
            self.ways |= dict.fromkeys(fresh)
            growing.grow([self.column(way) for way in fresh])

    def _reduced(self, number: int, duals: np.ndarray) -> np.ndarray:
        """Reduced costs of a request's ways."""
        costs = self.costs[number]
        one, starts = self.rows[number]
        found: np.ndarray = costs - duals[one]
        for axis, start in enumerate(starts):
            shape = [size if place == axis else 1 for place, size in enumerate(costs.shape)]
            found = found - duals[start : start + costs.shape[axis]].reshape(shape)
        return found

    def _worth(self, number: int, reduced: np.ndarray) -> list[Way]:
        flat = reduced.ravel()
        count = min(AT_ONCE, flat.size)
        least = np.argpartition(flat, count - 1)[:count]
        return [
            (number, int(index)) for index in least if flat[index] < -SEEN and (number, int(index)) not in self.ways
        ]

    def worth_while(self, priced: Priced, most: int) -> tuple[list[Way], float]:
        """The ways that may be in a better placement, the cheapest `most` of them, and the bound of all that use
        another.
        """
        gap = self.most - priced.bound
        found: list[tuple[float, Way]] = []
        left_out = math.inf
        for number, reduced in enumerate(priced.reduced):
            flat = reduced.ravel() - min(0.0, float(reduced.min()))
            chosen = np.flatnonzero(flat <= gap)
            if chosen.size > most:
                order = chosen[np.argpartition(flat[chosen], most)]
                chosen, left_out = order[:most], min(left_out, float(flat[order[most]]))
            found += [(float(flat[index]), (number, int(index))) for index in chosen]
        found.sort()
        if len(found) > most:
            left_out = min(left_out, found[most][0])
        return [way for _, way in found[:most]], priced.bound + left_out

    def whole(self, ways: list[Way], limit_s: float) -> tuple[Copies | None, float]:
        """The best placement of these ways and the known one's, and the bound of those."""
        program, choice = self._copies()
        kept = dict.fromkeys(ways)
        for number in range(len(self.costs)):
            taken = self.judge.best(number, self.known)[1]
            kept[number, int(np.ravel_multi_index(taken, self.costs[number].shape))] = None
        for way in kept:
            cost, rows = self.column(way)
            column = program.column(1.0, cost, whole=self.replicas > 1)
            for row in rows:
                program.rows[row][0][column] = 1.0
        ended = solve(program, limit_s, choice.start(self.known, []))
        if ended.status == "infeasible":
            return None, math.inf
        return None if ended.values is None else choice.read(dict(enumerate(ended.values))), ended.bound
