"""Place an instance: greedy, local search and the exact program in turn, the best of them, and its certificate."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Literal

from msao_compile.manifest.placement import Objective, PlacementCertificate
from msao_compile.place.exact import Found, exact
from msao_compile.place.greedy import fastest, greedy, packed
from msao_compile.place.instance import Instance
from msao_compile.place.latency import Copies, Judge, alone_s, fits, total
from msao_compile.place.local import Search, improved, pruned, shaken
from msao_compile.place.milp import library
from msao_compile.place.problem import Problem, problem_of
from msao_compile.place.sharpen import sharpened, tractable
from msao_compile.place.smallest import Change, smallest

Solver = Literal["auto", "greedy", "local", "exact"]
TOLERANCE = 1e-6
"""A placement is called optimal where its gap is this at most."""
SEARCHING = 0.2
"""Of the time, at most, that local search may take before the exact program."""
PROVING = 0.96
"""Of the time, at which HiGHS is to end: it looks at the clock between steps only."""
SMALL = 0.15
"""Of the time that is left, what the exact program may take to show that it is enough."""
MOST_PAIRS = 3_000
"""Pairs of devices of an encoder and its head, over all requests: with more, the exact program is not asked at all."""
SHARPENING = 0.9
"""Of the time that is left then, what is for columns; local search has the rest, from where they ended."""
KICKS = 8
"""Times that local search starts again from its best, shaken, without finding better."""
SEED = 0


@dataclass(frozen=True)
class Terms:
    """What is wanted of a placement; `replicas` copies of a module at most, 0 for as many as fit."""

    objective: Objective = "mean"
    replicas: int = 1
    limit_s: float = 10.0
    solver: Solver = "auto"


@dataclass(frozen=True)
class Placed:
    """The outcome: copies with their certificate, or why there are none and what would change that.

    `proven` is false where no placement was found, but none was ruled out either.
    """

    problem: Problem
    seconds: float
    greedy_objective_s: float | None
    copies: Copies | None = None
    certificate: PlacementCertificate | None = None
    reason: str | None = None
    changes: tuple[Change, ...] = ()
    proven: bool = True


def place(instance: Instance, terms: Terms) -> Placed:
    """Place the modules of an instance on its devices.

    Raises:
        MissingTool: the exact program is wanted, and HiGHS is not installed.
    """
    began_s = time.perf_counter()
    if terms.solver in ("auto", "exact"):
        library()
    problem = problem_of(instance)
    judge = Judge(problem, terms.objective)
    replicas = min(terms.replicas or len(problem.room), len(problem.room))
    first = greedy(judge, replicas, began_s + SEARCHING * terms.limit_s)
    greedy_s = None if first is None else judge.objective_s(first)
    best, bound_s, infeasible = first, bound(problem, terms.objective), False
    if terms.solver != "greedy":
        share = 1.0 if terms.solver == "local" else SEARCHING
        best = searched(judge, first, Search(replicas, began_s + share * terms.limit_s))
    if terms.solver in ("auto", "exact"):
        found = proved(judge, replicas, began_s + PROVING * terms.limit_s, best)
        infeasible, bound_s = found.infeasible, max(bound_s, found.bound_s)
        best = min((one for one in (best, found.copies) if one), key=judge.objective_s, default=None)
    if best is None:
        left_s = max(began_s + terms.limit_s - time.perf_counter(), 1.0)
        changes = smallest(problem, left_s) if infeasible else ()
        reason, seconds = _reason(changes, terms, infeasible), time.perf_counter() - began_s
        return Placed(problem, seconds, greedy_s, reason=reason, changes=changes, proven=infeasible)
    best = pruned(judge, best)
    certificate = _certificate(terms, judge.objective_s(best), bound_s, time.perf_counter() - began_s)
    return Placed(problem, certificate.seconds, greedy_s, best, certificate)


def proved(judge: Judge, replicas: int, until_s: float, known: Copies | None) -> Found:
    """The best placement until then: by the exact program, and where that is too large by one with a column a way."""
    left_s = until_s - time.perf_counter()
    large = known is not None and tractable(judge)
    share = 1.0 if not large else SMALL if pairs(judge.problem) <= MOST_PAIRS else 0.0
    found = exact(judge, replicas, share * left_s, known) if share else Found(None, 0.0, False)
    best = min((one for one in (known, found.copies) if one), key=judge.objective_s, default=None)
    if found.infeasible or best is None or not large:
        return found
    if judge.objective_s(best) <= found.bound_s * (1 + TOLERANCE):
        return Found(best, found.bound_s, False)
    sharper = sharpened(judge, replicas, SHARPENING * (until_s - time.perf_counter()), best)
    polished = improved(judge, sharper.copies, Search(replicas, until_s))
    return Found(polished, max(found.bound_s, sharper.bound_s), False)


def pairs(problem: Problem) -> int:
    """How large the exact program is, about."""
    return sum((len(ask.slots) - 1) * len(problem.room) ** 2 for ask in problem.asks)


def _certificate(terms: Terms, value_s: float, bound_s: float, seconds: float) -> PlacementCertificate:
    held_s = min(bound_s, value_s)
    return PlacementCertificate(
        objective=terms.objective, objective_s=value_s, bound_s=held_s,
        gap=(value_s - held_s) / value_s if value_s > 0 else 0.0,
        solver="exact" if terms.solver == "auto" else terms.solver, seconds=seconds, tolerance=TOLERANCE,
    )  # fmt: skip


def searched(judge: Judge, first: Copies | None, search: Search) -> Copies | None:
    """The best that local search finds from several starts, and from its best shaken by a seeded chance."""
    problem = judge.problem
    starts = [copies for copies in (first, fastest(problem), packed(problem)) if copies is not None]
    found = [improved(judge, copies, search) for copies in dict.fromkeys(starts)]
    found = [copies for copies in found if judge.objective_s(copies) < float("inf")]
    if not found:
        return None
    best, chance, left = min(found, key=judge.objective_s), random.Random(SEED), KICKS
    while left and not search.over:
        moved = improved(judge, shaken(judge, best, chance), search)
        left = KICKS if judge.objective_s(moved) < judge.objective_s(best) * (1 - TOLERANCE) else left - 1
        best = min(best, moved, key=judge.objective_s)
    return best if fits(problem, best) else None


def bound(problem: Problem, objective: Objective) -> float:
    """Seconds that no placement is below: each request as if all devices were its own."""
    return total([alone_s(problem, ask) for ask in problem.asks], [ask.weight for ask in problem.asks], objective)


def _reason(changes: tuple[Change, ...], terms: Terms, infeasible: bool) -> str:
    if changes:
        return "; or ".join(change.sentence(first=number == 0) for number, change in enumerate(changes))
    if infeasible:
        return f"no placement fits, and no change that makes one fit was found within {terms.limit_s:g} s"
    if terms.solver in ("greedy", "local"):
        return f"{terms.solver} found none, which proves nothing: ask with --solver exact"
    return f"none was found and none ruled out within {terms.limit_s:g} s: raise --time-limit"
