"""Better placements and sharper bounds for many modules and devices, by a column for each way to answer a request.

The mean is such a program itself. For the percentile, each limit T is one: a way costs its request's weight where it
takes longer than T. Where the least cost is more than 5 % of all weight, no placement has its percentile within T; so T
is halved in between what is ruled out and what is known.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from msao_compile.place.latency import COUNTED, SLACK, Copies, Judge, fits, total
from msao_compile.place.tables import cells, table
from msao_compile.place.ways import Ways

MOST_CELLS = 4_000_000
"""Ways of all requests together that are looked at, at most: 32 MB."""
FEW, MANY = 1_000, 8_000
"""Ways in a program in whole numbers: at first, and at most."""
PRICING = 0.35
"""Of the time, at most, that prices may take."""
FAR_S = 1e9
"""Instead of for ever, where it is multiplied by a weight that may be 0."""
PASSED_OVER = 1 - COUNTED * (1 - SLACK)
"""Of all weight, what a percentile does not count."""
SURE = 1e-7
"""What a bound must be above that by: prices are floats."""
ROUGH = 0.01
"""How near to each other limits come, relative, by prices alone."""
CLOSE = 1e-7
"""Limits that are as near to each other, relative, are one."""


@dataclass(frozen=True)
class Sharpened:
    """A placement, as good as the known one at least, and seconds that none is below."""

    copies: Copies
    bound_s: float


def tractable(judge: Judge) -> bool:
    """Whether all ways can be looked at."""
    return sum(cells(judge.problem, ask) for ask in judge.problem.asks) <= MOST_CELLS


def sharpened(judge: Judge, replicas: int, limit_s: float, known: Copies) -> Sharpened:
    """A placement from a known one on, in so many seconds.

    Raises:
        MissingTool: HiGHS is not installed.
    """
    until_s = time.perf_counter() + limit_s
    if judge.objective_s(known) <= 0:
        return Sharpened(known, 0.0)
    seconds = [table(judge.problem, ask) for ask in judge.problem.asks]
    find = _mean if judge.objective == "mean" else _percentile
    return find(judge, replicas, until_s, known, seconds)


def _mean(judge: Judge, replicas: int, until_s: float, known: Copies, seconds: list[np.ndarray]) -> Sharpened:
    """By more and more ways: few are soon decided, and what they find rules out others. The first that are not decided
    in time are doubled and get the rest of it.
    """
    best, bound_s, most, unit_s = known, 0.0, FEW, judge.objective_s(known)
    scaled = [weight / unit_s for weight in judge.weights]
    costs = [_priced(held, scale * np.minimum(held, FAR_S)) for held, scale in zip(seconds, scaled, strict=True)]
    ways, last = Ways(judge, replicas, known, costs, 1.0), False
    priced = ways.priced(_share(until_s, PRICING))
    while priced is not None:
        ways.known, ways.most = best, judge.objective_s(best) / unit_s
        chosen, others = ways.worth_while(priced, most)
        last = last or math.isinf(others) or most >= MANY
        left_s = until_s - time.perf_counter()
        copies, bound = ways.whole(chosen, left_s if last else left_s / 4)
        best = _better(judge, best, copies)
        bound_s = max(bound_s, max(priced.bound, min(bound, others)) * unit_s)
        if last or time.perf_counter() >= until_s:
            break
        last = bound * unit_s < judge.objective_s(best) * (1 - CLOSE)
        most = most * 2 if last else most + FEW
    return Sharpened(best, bound_s)


def _percentile(judge: Judge, replicas: int, until_s: float, known: Copies, seconds: list[np.ndarray]) -> Sharpened:
    search = _Limits(judge, replicas, seconds, until_s)
    best = known
    bound_s = total([float(held.min()) for held in seconds], judge.weights, "p95")
    high_s = first_s = judge.objective_s(known)
    prices_until_s = _share(until_s, PRICING)
    while high_s - bound_s > ROUGH * first_s and time.perf_counter() < prices_until_s:  # what prices alone rule out
        limit_s = (bound_s + high_s) / 2
        if search.ruled_out(best, limit_s):
            bound_s = limit_s
        else:
            high_s = limit_s
    seek_s = bound_s
    while time.perf_counter() < until_s and judge.objective_s(best) - seek_s > CLOSE * judge.objective_s(best):
        limit_s = (seek_s + judge.objective_s(best)) / 2
        other, out = search.within(best, limit_s)
        best = _better(judge, best, other)
        if out:
            bound_s = seek_s = limit_s
        elif judge.objective_s(best) > limit_s:  # undecided: above it may be easier
            seek_s = limit_s
    return Sharpened(best, min(bound_s, judge.objective_s(best)))


@dataclass(frozen=True)
class _Limits:
    """Asks of a limit whether some placement has its percentile within."""

    judge: Judge
    replicas: int
    seconds: list[np.ndarray]
    until_s: float

    def ways(self, known: Copies, limit_s: float) -> Ways:
        """A request's weight is the cost of each of its ways that takes longer."""
        whole = math.fsum(self.judge.weights)
        costs = [
            _priced(held, weight / whole * (held > limit_s))
            for held, weight in zip(self.seconds, self.judge.weights, strict=True)
        ]
        return Ways(self.judge, self.replicas, known, costs, PASSED_OVER + SURE)

    def ruled_out(self, known: Copies, limit_s: float) -> bool:
        """Whether prices alone say no."""
        priced = self.ways(known, limit_s).priced(_share(self.until_s, PRICING))
        return priced is not None and priced.bound > PASSED_OVER + SURE

    def within(self, known: Copies, limit_s: float) -> tuple[Copies | None, bool]:
        """A placement that may be within, and whether none is."""
        ways = self.ways(known, limit_s)
        priced = ways.priced(_share(self.until_s, PRICING))
        if priced is None or priced.bound > PASSED_OVER + SURE:
            return None, priced is not None
        chosen, others = ways.worth_while(priced, MANY)
        copies, bound = ways.whole(chosen, (self.until_s - time.perf_counter()) / 2)
        return copies, min(bound, others) > PASSED_OVER + SURE


def _priced(seconds: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Costs, infinite where no link leads, whatever the weight."""
    return np.where(np.isfinite(seconds), costs, math.inf)


def _share(until_s: float, share: float) -> float:
    now_s = time.perf_counter()
    return now_s + share * (until_s - now_s)


def _better(judge: Judge, known: Copies, other: Copies | None) -> Copies:
    if other is None or not fits(judge.problem, other):
        return known
    return min(known, other, key=judge.objective_s)
