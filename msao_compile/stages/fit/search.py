"""Which thresholds make answers soonest on the samples fitted on, while the loss is bounded: Optuna's TPE, seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from msao_compile.errors import MissingTool
from msao_compile.manifest.fit_evidence import Trial
from msao_compile.manifest.mas import ProbeName, Rung
from msao_compile.runtime.bounds import clopper_pearson
from msao_compile.stages.fit.costs import Costs, Drafts
from msao_compile.stages.fit.learned import Guesses
from msao_compile.stages.fit.outcomes import Knobs, Marks, outcome
from msao_compile.stages.fit.record import KAPPAS, RHOS, Level

if TYPE_CHECKING:
    import optuna

MOST_DRAFTS = 16
"""Draft tokens of a round that are tried."""
DOUBT = (1e-3, 0.5)
"""Chances of being wrong, and of being needed, within which thresholds lie: even steps of their logarithm."""
CONFIDENCE = (0.05, 0.9)
"""Confidences within which the threshold of drafts lies."""
FIRST = {"doubt": 0.01, "tau_drop": 0.01, "gamma_max": 4, "tau_confidence": 0.3}
"""The first trial: the guess that a deployment has before it is fitted."""
RUNGS: dict[str, Rung | None] = {"full": None, "regions": "regions", "thumbnail": "thumbnail"}
HIDDEN = 0.05
"""How much drafts count where the guard hides them since the cloud by itself is faster: on another link, or with a
busier cloud, they are what counts."""
FAR_MS = 1e6
"""What a broken constraint costs for each whole loss beyond it: more than any answer takes."""


@dataclass(frozen=True)
class Found:
    """The best that held, and all trials."""

    knobs: Knobs
    trials: tuple[Trial, ...]


def optimiser() -> Any:
    """Optuna.

    Raises:
        MissingTool: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingTool("fitting searches with optuna: pip install 'msao-compile[fit]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search(
    costs: Costs, guesses: Guesses, epsilon: float, trials: int, seed: int, tell: Callable[[int], None]
) -> Found:  # fmt: skip
    """So many trials; of those whose bound of the loss holds, the one with the least mean time."""
    tool, marks = optimiser(), Marks.of(costs.records)
    told: list[tuple[Knobs, Trial]] = []
    reducible = any(record.reduced for record in costs.records)

    def objective(trial: optuna.Trial) -> float:
        tell(trial.number)
        knobs = _knobs(trial, costs.cutter if reducible else None, bool(marks.shown_N.any()))
        found = outcome(knobs, costs, marks, guesses)
        lost, count = int(found.lost_N.sum()), len(found.lost_N)
        upper = clopper_pearson(lost, count)
        mean_ms = float(found.ms_N.mean())
        told.append((
            knobs,
            Trial(
                number=trial.number, parameters=dict(trial.params), mean_ms=mean_ms, alone=float(found.alone_N.mean()),
                loss=lost / count, upper=upper, holds=upper <= epsilon,
            ),
        ))  # fmt: skip
        drafts_ms = float(costs.speculated("full", knobs.drafts).mean())
        return mean_ms + HIDDEN * drafts_ms + FAR_MS * max(upper - epsilon, 0.0)

    study = tool.create_study(sampler=tool.samplers.TPESampler(seed=seed))
    study.enqueue_trial(FIRST, skip_if_exists=True)
    study.optimize(objective, n_trials=trials)
    best, _ = min(told, key=lambda pair: (not pair[1].holds, pair[1].mean_ms, pair[1].number))
    drafts = min((knobs.drafts for knobs, _ in told), key=lambda drafts: _drafts_ms(costs, drafts))
    return Found(replace(best, drafts=drafts), tuple(trial for _, trial in told))


def _drafts_ms(costs: Costs, drafts: Drafts) -> float:
    """What drafts cost where the cloud answers: their knobs lose nothing, so they are chosen by themselves."""
    return float(costs.best("full", drafts).mean() + HIDDEN * costs.speculated("full", drafts).mean())


def _knobs(trial: optuna.Trial, cutter: ProbeName | None, shown: bool) -> Knobs:
    """One point. What the samples say nothing of is not searched: without pictures there is nothing to drop, and only
    a probe that looks at them can cut them.
    """
    doubt = trial.suggest_float("doubt", *DOUBT, log=True)
    drafts = Drafts(trial.suggest_int("gamma_max", 1, MOST_DRAFTS), trial.suggest_float("tau_confidence", *CONFIDENCE))
    tau_drop = trial.suggest_float("tau_drop", *DOUBT, log=True) if shown else 0.0
    rung: Rung | None = None
    probe: ProbeName = "words"
    level: Level = (RHOS[-1], KAPPAS[-1])
    if cutter is not None:
        rung = RUNGS[trial.suggest_categorical("rung", tuple(RUNGS))]
        level = (trial.suggest_categorical("rho", RHOS), trial.suggest_categorical("kappa_min", KAPPAS))
        looks = trial.suggest_categorical("looks", (False, True))
        probe = cutter if looks or rung == "regions" else "words"
    return Knobs(1 - doubt, tau_drop, rung, None if rung == "thumbnail" else level, drafts, probe)
