"""Whether emulation is true: one point asked of real processes on the clock, and the same point in counted time."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.bench.edge_process import ROUTES, EdgeTask
from msao_compile.bench.lateness import Lateness
from msao_compile.bench.policies import Answer, Policy, policies
from msao_compile.bench.primitives import measured, quiet, turns_ms
from msao_compile.bench.real import NEAR, Edges, cloud, edges, links
from msao_compile.bench.run import Asked, Pair, asked, pair_of, point
from msao_compile.bench.setting import Setting, Side, read_setting
from msao_compile.bench.shape import Shape
from msao_compile.bench.sides import Edge, Outcome
from msao_compile.bench.sweep import known_names, rows_of
from msao_compile.errors import InputError
from msao_compile.runtime.api import Runtime, load
from msao_compile.runtime.serve.cloud.opening import cloud_model, served_session
from msao_compile.runtime.views import Question

UNCOUNTED = 4
"""First questions of each edge, asked on both sides and not counted: connections open, memories fill."""
MEASURED = 12
"""Questions by which work is timed."""
TRIED = 16
"""Questions of which a dry run counts the time."""
START_S = 12.0
"""About what it takes to measure, and to start and end the processes."""
FIGURES = ("mean_ms", "p50_ms", "p95_ms", "ttft_ms", "up_bytes", "down_bytes", "kept")
Tell = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One point: so many questions in all, asked by `edges` over links of a shape, under policies (none for all).

    `declared`: both sides take the times that the setting declares, by waiting; else those they take on this machine.
    `rounds`: so often all of it is asked in real time, by policies that know nothing yet; of each question the quiet
    rounds count.
    """

    deployment: Path
    setting: Path
    samples: Path
    questions: int
    only: tuple[str, ...]
    shape: Shape
    edges: int = 1
    declared: bool = False
    rounds: int = 1


@dataclass(frozen=True)
class _Ready:
    """What both sides of a check need."""

    setting: Setting
    runtime: Runtime
    pair: Pair
    questions: list[Asked]
    names: list[str]

    @property
    def uncounted(self) -> int:
        return len(self.questions) - self.counted

    counted: int


def expected_s(check: Check) -> float:
    """Seconds that a check will take, reckoned in counted time from some of its questions.

    Raises:
        InputError, DeploymentError: as `run`.
    """
    ready = _opened(check)
    pair, some = _declared(ready, check), ready.questions[: ready.uncounted + TRIED]
    known = policies(ready.runtime.deployment, pair.drafter)
    plain = _plain(ready.setting, 0.0, (0.0, 0.0))
    spent_ms = [point(pair, plain, check.shape, check.edges, known[name], some).passed_ms for name in ready.names]
    return START_S + check.rounds * sum(spent_ms) * len(ready.questions) / len(some) / 1e3


def run(check: Check, log: Path, tell: Tell) -> Row:
    """Both sides of a point, policy by policy; `log` takes what the cloud says.

    Raises:
        InputError: a policy is not known, the samples cannot be used or are too few, or a picture is larger than the
            setting says. DeploymentError: as `pair_of`. StageError: a process did not start or ended early.
    """
    ready = _opened(check)
    tell("timing what work takes here")
    some = ready.questions[ready.uncounted :][:MEASURED]
    here, there = measured(ready.pair, some, check.edges)
    pair = _declared(replace(ready, pair=replace(ready.pair, here=here, there=there)), check)
    turns = turns_ms(pair, some, check.declared)
    ready = replace(ready, pair=pair)
    with Lateness() as late:
        seen, message_ms = _seen(ready, check, log, tell)
    tell("the same in counted time")
    beside = _plain(ready.setting, message_ms, turns)
    rows = [_compared(replace(ready, setting=beside), check, name, seen[name]) for name in ready.names]
    return {
        **_place(check),
        "setting": ready.setting.name,
        "speeds": "declared" if check.declared else "measured",
        "questions": ready.counted,
        "uncounted": ready.uncounted,
        "rounds": check.rounds,
        "message_ms": message_ms,
        "edge_turn_ms": turns[0],
        "cloud_turn_ms": turns[1],
        "primitives": {side: times.model_dump() for side, times in (("edge", pair.here), ("cloud", pair.there))},
        "timer_late_ms": late.figures(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "niceness": os.nice(0)},
        "rows": rows,
    }


def _place(check: Check) -> Row:
    shape = check.shape
    return {"mbps": shape.mbps, "rtt_ms": shape.rtt_ms, "jitter_ms": shape.jitter_ms, "loss": shape.loss,
            "edges": check.edges}  # fmt: skip


def _opened(check: Check) -> _Ready:
    """Everything read, and refused where it cannot be used, before anything is started."""
    setting, names = read_setting(check.setting), known_names(check.only)
    uncounted = UNCOUNTED * check.edges
    wanted = check.questions + uncounted
    rows = rows_of(check.samples, wanted)
    if len(rows) < wanted:
        raise InputError(
            f"{check.samples}: has {len(rows)} samples where {check.questions} and {uncounted} that are not counted "
            "are asked: give more samples, or --questions less"
        )
    questions = [_padded(one, setting.picture_bytes) for one in asked(rows, check.samples.parent)]
    runtime = load(check.deployment)
    model = cloud_model(runtime.deployment, None)
    pair = pair_of(runtime, served_session(runtime, model, _sessions(check)))
    known = policies(runtime.deployment, pair.drafter)
    missing = next((name for name in check.only if name not in known), None)
    if missing is not None:
        raise InputError(f"policy {missing!r} needs a fit with a bound: run msao-compile fit {check.deployment} first")
    return _Ready(setting, runtime, pair, questions, [name for name in names if name in known], check.questions)


def _sessions(check: Check) -> int:
    """As many as the cloud of a point in counted time has room for."""
    return max(2 * check.edges, 4)


def _padded(one: Asked, picture_bytes: int | None) -> Asked:
    """With pictures of so many bytes: what follows the end of one, decoders leave alone."""
    if picture_bytes is None:
        return one
    pictures = []
    for picture in one.question.pictures:
        assert isinstance(picture, bytes)  # as `asked` reads them
        if len(picture) > picture_bytes:
            raise InputError(
                f"a picture of the samples has {len(picture)} bytes where the setting says {picture_bytes}: raise "
                "picture_bytes, or leave it out to send pictures as they are"
            )
        pictures.append(picture + bytes(picture_bytes - len(picture)))
    return replace(one, question=replace(one.question, pictures=tuple(pictures)))


def _declared(ready: _Ready, check: Check) -> Pair:
    """The pair with the times that both sides of the check have."""
    if not check.declared:
        return ready.pair
    here, there = ready.setting.edge.primitives(ready.pair.here), ready.setting.cloud.primitives(ready.pair.there)
    return replace(ready.pair, here=here, there=there)


def _plain(setting: Setting, message_ms: float, turns_ms: tuple[float, float]) -> Setting:
    """A setting that changes no times and pads no pictures any more."""
    edge, far = (
        Side(name=side.name, turn_ms=turn_ms)
        for side, turn_ms in zip((setting.edge, setting.cloud), turns_ms, strict=True)
    )
    return setting.model_copy(update={"edge": edge, "cloud": far, "picture_bytes": None, "message_ms": message_ms})


def _seen(ready: _Ready, check: Check, log: Path, tell: Tell) -> tuple[dict[str, list[Outcome]], float]:
    """Outcomes by policy and in the order of the questions that count, and what a message takes beside the link."""
    slowed = ready.pair.there if check.declared else None
    shapes = [check.shape] * check.edges + [NEAR]
    tell(f"a cloud, {check.edges} links and {check.edges} edges start")
    with cloud(check.deployment, _sessions(check), slowed, log) as port, links(port, shapes) as ports:
        tasks = [
            EdgeTask(
                check.deployment, f"grpc://127.0.0.1:{ports[index]}", f"grpc://127.0.0.1:{ports[-1]}",
                tuple(ready.questions[index :: check.edges]), UNCOUNTED, ready.pair.here, ready.pair.there,
                check.declared,
            )
            for index in range(check.edges)
        ]  # fmt: skip
        with edges(tasks) as clients:
            message_ms = clients.message_ms()
            found = {name: _asked(clients, name, check.rounds, tell) for name in ready.names}
    return found, message_ms


def _asked(clients: Edges, name: str, rounds: int, tell: Tell) -> list[Outcome]:
    found = []
    for index in range(rounds):
        tell(f"{name}, in real time" + (f", {index + 1} of {rounds}" if rounds > 1 else ""))
        each = clients.answer(name)
        most = max(len(one) for one in each)
        found.append([one[place] for place in range(most) for one in each if place < len(one)])
    return [calm(same) for same in zip(*found, strict=True)]


def calm(same: Sequence[Outcome]) -> Outcome:
    """One question's outcome of several rounds: what it took while it was quiet, and the rest of the first round."""
    firsts = [one.first_ms for one in same if one.first_ms is not None]
    first_ms = quiet(firsts) if firsts else None
    return replace(same[0], total_ms=quiet([one.total_ms for one in same]), first_ms=first_ms)


def _compared(ready: _Ready, check: Check, name: str, seen: Sequence[Outcome]) -> Row:
    """One policy's figures, foretold and seen."""
    routed, setting = name in ROUTES and not (check.declared and name == "edge-only"), ready.setting
    if routed and name == "edge-only":  # in the caller's thread: no device, and no turns
        setting = setting.model_copy(update={"edge": setting.edge.model_copy(update={"turn_ms": 0.0})})
    policy = _for_each(ready, name)
    outcomes = point(ready.pair, setting, check.shape, check.edges, policy, ready.questions).outcomes[ready.uncounted :]
    foretold, real = figures(outcomes), figures(seen)
    return {
        "policy": name,
        "asked_by": f"route {ROUTES[name]}" if routed else "the policy's code",
        "predicted": foretold,
        "seen": real,
        "error": {key: _error(foretold[key], real[key]) for key in FIGURES},
        "unverified": sum(not one.verified for one in seen),
        "equal": sum(one.tokens == other.tokens for one, other in zip(outcomes, seen, strict=True)),
        "n": len(outcomes),
    }


def _for_each(ready: _Ready, name: str) -> Policy:
    """A policy whose memory is each edge's own, as it is where each is a process."""
    answers: dict[int, Answer] = {}

    def made() -> Policy:
        return policies(ready.runtime.deployment, ready.pair.drafter)[name]

    async def answer(edge: Edge, question: Question) -> Outcome:
        if id(edge) not in answers:
            answers[id(edge)] = made().answer
        return await answers[id(edge)](edge, question)

    return replace(made(), answer=answer)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Latency and bytes of an answer, and the share of drafts kept of those judged; None where nothing is known."""
    totals = [outcome.total_ms for outcome in outcomes]
    firsts = [outcome.first_ms for outcome in outcomes if outcome.first_ms is not None]
    accepted = sum(outcome.accepted for outcome in outcomes)
    judged = accepted + sum(outcome.rejected for outcome in outcomes)
    return {
        "mean_ms": statistics.fmean(totals),
        "p50_ms": float(np.percentile(totals, 50)),
        "p95_ms": float(np.percentile(totals, 95)),
        "ttft_ms": statistics.fmean(firsts) if firsts else None,
        "up_bytes": statistics.fmean(outcome.up_bytes for outcome in outcomes),
        "down_bytes": statistics.fmean(outcome.down_bytes for outcome in outcomes),
        "kept": accepted / judged if judged else None,
    }


def _error(foretold: float | None, seen: float | None) -> float | None:
    """How much more was seen than foretold, as a share; 0 where both are nothing."""
    if foretold is None or seen is None:
        return None
    if not foretold:
        return 0.0 if not seen else None
    return seen / foretold - 1.0


def same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are of the same point, so that the later takes the place of the earlier."""
    return all(one[key] == other[key] for key in ("mbps", "rtt_ms", "jitter_ms", "loss", "edges", "speeds"))
