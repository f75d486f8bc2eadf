"""Which thresholds were shown to lose little: candidates from safe to fast, tested in that order on held-out samples.

The order and the candidates come from the samples fitted on alone. Each is tested at the same level, and the test ends
with the first that fails: so the chance that any that held loses more is still one in twenty (fixed-sequence testing;
Angelopoulos et al., "Learn then Test", 2021; the frontier as order: Laufer-Goldshtein et al., "Pareto Testing", 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msao_compile.manifest.fit_evidence import Candidate, CurvePoint
from msao_compile.manifest.mas import LossBound, ProbeName, Rung
from msao_compile.runtime.bounds import CONFIDENCE, clopper_pearson
from msao_compile.stages.fit.costs import Costs
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.outcomes import Knobs, Marks, outcome

DOUBTS = tuple(float(value) for value in np.geomspace(0.3, 0.001, 28))
DROPS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
MOST = 40
"""Candidates that are tested: enough to come near to the last that holds."""


@dataclass(frozen=True)
class Tested:
    """Every candidate with what became of it; knobs and bound of the one that is taken, None where none held."""

    candidates: tuple[Candidate, ...]
    knobs: Knobs | None
    bound: LossBound | None


@dataclass(frozen=True)
class Side:
    """One set of samples: costs, which answers are right, and what is said of each."""

    costs: Costs
    marks: Marks
    guesses: Guesses


def calibrate(best: Knobs, fit: Side, held_out: Side, epsilon: float) -> Tested:
    """Test what lies around the best of the search; of what held, the one that is fastest on the samples fitted on."""
    found: list[Candidate] = []
    held: list[tuple[float, Knobs, LossBound]] = []
    stopped = False
    for knobs, risk, mean_ms in candidates(best, fit):
        told = Candidate(
            tau_alone=knobs.tau_alone, tau_drop=knobs.tau_drop, probe=knobs.probe, reduced=knobs.reduced, risk=risk,
            mean_ms=mean_ms, verdict="not tested",
        )  # fmt: skip
        if not stopped:
            told, bound = _test(told, knobs, held_out, epsilon)
            stopped = bound is None
            if bound is not None:
                held.append((mean_ms, knobs, bound))
        found.append(told)
    taken = min(held, key=lambda one: one[0], default=None)
    return Tested(tuple(found), taken and taken[1], taken and taken[2])


def _test(told: Candidate, knobs: Knobs, held_out: Side, epsilon: float) -> tuple[Candidate, LossBound | None]:
    came = outcome(knobs, held_out.costs, held_out.marks, held_out.guesses)
    lost, count = int(came.lost_N.sum()), len(came.lost_N)
    upper = clopper_pearson(lost, count)
    said = {
        "share_alone": float(came.alone_N.mean()), "share_dropped": float(came.dropped_N.mean()), "lost": lost,
        "loss": lost / count, "upper": upper, "verdict": "held" if upper <= epsilon else "failed",
    }  # fmt: skip
    bound = None
    if upper <= epsilon:
        bound = LossBound(
            epsilon=epsilon, mean=lost / count, upper=upper, confidence=CONFIDENCE, method="clopper-pearson",
            samples=count,
        )  # fmt: skip
    return told.model_copy(update=said), bound


def candidates(best: Knobs, fit: Side) -> list[tuple[Knobs, float, float]]:
    """Knobs with their risk and mean time on the samples fitted on: of all that are tried, those than which none is
    both safer and faster, from safe to fast; what changes nothing is none.
    """
    tried = []
    for knobs in _around(best):
        came = outcome(knobs, fit.costs, fit.marks, fit.guesses)
        lost = float(came.lost_N.mean())
        tried.append((max(float(came.risk_N.mean()), lost), float(came.ms_N.mean()), knobs))
    idle_ms = float(fit.costs.best("full", best.drafts).mean())
    front: list[tuple[Knobs, float, float]] = []
    fastest = idle_ms
    for risk, mean_ms, knobs in sorted(tried, key=lambda one: one[:2]):
        if mean_ms < fastest - 1e-9:
            front.append((knobs, risk, mean_ms))
            fastest = mean_ms
    return _thinned(front)


def _around(best: Knobs) -> Iterator[Knobs]:
    ways: dict[tuple[Rung | None, ProbeName], None] = {(None, "words"): None, (best.rung, best.probe): None}
    drops = DROPS if best.tau_drop > 0 else (0.0,)
    for rung, probe in ways:
        for tau_drop in drops:
            for tau_alone in (None, *(1 - doubt for doubt in DOUBTS)):
                yield replace(best, tau_alone=tau_alone, tau_drop=tau_drop, rung=rung, probe=probe)


def _thinned(front: Sequence[tuple[Knobs, float, float]]) -> list[tuple[Knobs, float, float]]:
    """Some tens of them, evenly in time: between two that are alike one test is enough."""
    if len(front) <= MOST:
        return list(front)
    wanted = np.linspace(front[0][2], front[-1][2], MOST)
    times = np.array([one[2] for one in front])
    return [front[place] for place in sorted({int(np.abs(times - time).argmin()) for time in wanted})]


def curve(knobs: Knobs, held_out: Side) -> tuple[CurvePoint, ...]:
    """On held-out samples, for every share of answers that stand alone: what is lost. A picture of the trade, no proof:
    only the candidates are tested.
    """
    found = []
    for doubt in DOUBTS:
        tau_alone = 1 - doubt
        came = outcome(replace(knobs, tau_alone=tau_alone), held_out.costs, held_out.marks, held_out.guesses)
        lost, count = int(came.lost_N.sum()), len(came.lost_N)
        found.append(
            CurvePoint(
                tau_alone=tau_alone, share=float(came.alone_N.mean()), loss=lost / count,
                upper=clopper_pearson(lost, count),
            )
        )  # fmt: skip
    return tuple(found)
