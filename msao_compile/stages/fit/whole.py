"""The stage: ask both models, learn, search, test, and say what of it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from msao_compile.bench.setting import read_setting
from msao_compile.errors import DeploymentError, InputError
from msao_compile.manifest.fit_evidence import MasEvidence, Reference
from msao_compile.manifest.mas import Mas, ProbeName, Reduction, SampleSets, Thresholds
from msao_compile.manifest.offload import Speculation
from msao_compile.manifest.schema import Deployment
from msao_compile.runtime import load
from msao_compile.runtime.cost import Host
from msao_compile.runtime.link_state import LinkEstimate
from msao_compile.runtime.mas.payload import Form
from msao_compile.runtime.session import ModelSession
from msao_compile.stages.fit import occlusion, shown
from msao_compile.stages.fit.calibrate import Side, Tested, calibrate, curve
from msao_compile.stages.fit.costs import Costs, Sides
from msao_compile.stages.fit.learned import Learned, guess, learn, with_prior
from msao_compile.stages.fit.outcomes import Knobs, Marks, outcome
from msao_compile.stages.fit.record import COSINE, QUALITY, SHRINK, WEIGHTS, Record, Recorder, looking, mean_fill
from msao_compile.stages.fit.samples import Sample, read_sets
from msao_compile.stages.fit.search import Found, optimiser, search

OnProgress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Asked:
    """What is to be fitted, and how."""

    task: str | None
    epsilon: float
    trials: int
    seed: int
    mbps: float
    rtt_ms: float
    setting: str | None = None


def fit(arguments: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """`mas`, `speculation` and `evidence` of one task, as `applied.fitted` takes them.

    Args:
        arguments: folder, samples, held_out (None: a part of the samples), task (None: the first that speculates),
            epsilon, trials, seed; mbps and rtt_ms of the link that costs are reckoned with, and setting, a file that
            declares both devices (None: as measured).
        on_progress: told what is done.

    Raises:
        InputError: the samples cannot be used, or the deployment has no such task. DeploymentError: nothing was
            measured. MissingTool: optuna is not installed.
    """
    optimiser()  # before minutes of answers
    folder, held_out = Path(arguments["folder"]), arguments["held_out"]
    asked = Asked(**{field.name: arguments[field.name] for field in fields(Asked)})
    started = time.perf_counter()
    sets = read_sets(Path(arguments["samples"]), None if held_out is None else Path(held_out), asked.seed)
    runtime = load(folder)
    entry = entry_of(runtime.deployment, asked.task)
    sides = sides_of(runtime.deployment, entry, asked)
    drafter, fill = runtime.session(entry.drafter), mean_fill(sets.fit)
    weights = {**WEIGHTS, **_weighed(drafter, sets.fit, fill)}
    recorder = Recorder(drafter, runtime.session(entry.verifier), Form(SHRINK, QUALITY, fill), weights)
    records = []
    for name, samples in (("fit", sets.fit), ("held out", sets.held_out)):

        def tell(done: int, name: str = name, of: int = len(samples)) -> None:
            on_progress({"set": name, "done": done, "of": of})

        records.append(recorder.records(samples, tell))
    answered = time.perf_counter()
    learned = learn(records[0], asked.seed, weights)
    made = made_of(learned, (records[0], records[1]), sides, asked, lambda number: on_progress({"trial": number}))
    seconds = {"answers": answered - started, "search": time.perf_counter() - answered}
    decode = recorder.drafter.tokenizer.decode
    told = {token: decode([token]).strip() for token in made.learned.words.tokens}
    return written(made, (entry, sets.told(), fill), asked, told, seconds)


def _weighed(
    drafter: ModelSession, samples: Sequence[Sample], fill: tuple[int, int, int]
) -> dict[ProbeName, tuple[float, float, float]]:
    """The weights of each probe that looks at pictures."""
    probes = looking(drafter, WEIGHTS)
    return {name: occlusion.weights(probe, drafter, samples, fill, WEIGHTS[name]) for name, probe in probes.items()}


def entry_of(deployment: Deployment, task: str | None) -> Speculation:
    """The speculation of a task, or of the first that has one.

    Raises:
        InputError: there is none.
    """
    found = next((entry for entry in deployment.speculation if task in (None, entry.task)), None)
    if found is None:
        known = ", ".join(entry.task for entry in deployment.speculation) or "none does"
        raise InputError(
            f"{'no task' if task is None else f'task {task!r} is not one that'} has a model that drafts and one that "
            f"verifies ({known}): fit a deployment whose task has models of roles draft and target"
        )
    return found


def sides_of(deployment: Deployment, entry: Speculation, asked: Asked) -> Sides:
    """Both models as measured or declared, and the link that was declared.

    Raises:
        DeploymentError: a model was not measured.
    """
    times = {times.model: times for times in deployment.primitives}
    if not {entry.drafter, entry.verifier} <= set(times):
        raise DeploymentError(
            f"{deployment.name}: models {entry.drafter} and {entry.verifier} were not measured, so nothing tells what "
            "an answer takes: build it again with a target local-cpu"
        )
    link = LinkEstimate(asked.mbps * 1e3, asked.rtt_ms)
    here, there = times[entry.drafter], times[entry.verifier]
    if asked.setting is None:
        return Sides(Host(here), Host(there), link)
    setting = read_setting(Path(asked.setting))
    edge, cloud = Host(setting.edge.primitives(here)), Host(setting.cloud.primitives(there))
    return Sides(edge, cloud, link, setting.picture_bytes)


@dataclass(frozen=True)
class Made:
    """All that came of the records."""

    learned: Learned
    found: Found
    tested: Tested
    knobs: Knobs
    fit: Side
    held_out: Side


def made_of(
    learned: Learned,
    records: tuple[Sequence[Record], Sequence[Record]],
    sides: Sides,
    asked: Asked,
    tell: Callable[[int], None],
) -> Made:
    """Search and test: arithmetic on records, the same from the same seed."""
    fit_records, held_records = records
    costs = Costs(fit_records, sides)
    found = search(costs, learned.guesses, asked.epsilon, asked.trials, asked.seed, tell)
    fit_side = Side(costs, Marks.of(fit_records), learned.guesses)
    held_side = Side(Costs(held_records, sides), Marks.of(held_records), guess(learned, held_records))
    tested = calibrate(found.knobs, fit_side, held_side, asked.epsilon)
    knobs = tested.knobs or replace(found.knobs, tau_alone=None, rung=None)
    wished = tested.knobs or found.knobs
    stands_N = outcome(wished, costs, fit_side.marks, learned.guesses).alone_N
    learned = with_prior(learned, fit_records, stands_N)
    return Made(shown.with_errors(learned, held_side, wished), found, tested, knobs, fit_side, held_side)


def _reference(asked: Asked) -> Reference:
    setting = None if asked.setting is None else read_setting(Path(asked.setting))
    devices = None if setting is None else (setting.edge.name, setting.cloud.name)
    return Reference(mbps=asked.mbps, rtt_ms=asked.rtt_ms, devices=devices)


def thresholds_of(knobs: Knobs) -> Thresholds:
    """As the manifest has them."""
    rho, kappa = knobs.level or (1.0, 0.0)
    return Thresholds(
        rho=rho, kappa_min=kappa, s_star=COSINE, tau_drop=knobs.tau_drop, tau_alone=knobs.tau_alone,
        tau_confidence=knobs.drafts.confidence, gamma_max=knobs.drafts.most, probe=knobs.probe,
    )  # fmt: skip


def written(
    made: Made,
    of: tuple[Speculation, SampleSets, tuple[int, int, int]],
    asked: Asked,
    words: Mapping[int, str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The stage's value."""
    entry, samples, fill = of
    bound, learned = made.tested.bound, made.learned
    seeds = {"search": asked.seed, "split": asked.seed}  # in the order in which the store gives them back
    mas = Mas(
        task=entry.task, drafter=entry.drafter, verifier=entry.verifier, probes=learned.probes, words=learned.words,
        sure=learned.sure, thresholds=thresholds_of(made.knobs),
        reduction=Reduction(shrink=SHRINK, quality=QUALITY, fill=fill),
        reduced=made.knobs.reduced if bound is not None else (), bound=bound, samples=samples, seeds=seeds,
    )  # fmt: skip
    drafts = made.knobs.drafts
    confidence = min(max(drafts.confidence, entry.confidence_min), entry.confidence_max)
    speculation = entry.model_copy(
        update={
            "draft_tokens": drafts.most,
            "confidence": confidence,
            "acceptance": learned.acceptance,
            "kept": shown.kept(made.fit.costs.records),
        }
    )
    weights = zip(learned.words.tokens, learned.words.weights, strict=True)
    sets = (shown.summary("fit", made.fit.costs.records), shown.summary("held out", made.held_out.costs.records))
    evidence = MasEvidence(
        task=entry.task, epsilon=asked.epsilon, link=_reference(asked), samples=samples,
        seeds=seeds, sets=sets,
        words={f"{words[token]} ({token})": weight for token, weight in weights}, fill=fill,
        reliability=shown.reliabilities(learned, made.held_out, made.tested.knobs or made.found.knobs),
        trials=made.found.trials, candidates=made.tested.candidates, curve=curve(made.knobs, made.held_out),
        chosen=mas.thresholds, bound=bound, costs_ms=shown.costs_ms(made.held_out, made.knobs), seconds=seconds,
    )  # fmt: skip
    return {
        "mas": mas.model_dump(mode="json"), "speculation": speculation.model_dump(mode="json"),
        "evidence": evidence.model_dump(mode="json"),
    }  # fmt: skip
