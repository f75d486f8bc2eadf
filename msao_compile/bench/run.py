"""One point of a sweep: questions asked by several edges at once of one cloud, and what came of it."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msao_compile.bench import virtual
from msao_compile.bench.paced import PacedDevice
from msao_compile.bench.policies import Policy
from msao_compile.bench.setting import Setting
from msao_compile.bench.shape import Shape, ShapedLink
from msao_compile.bench.sides import Edge, Outcome
from msao_compile.errors import DeploymentError, InputError
from msao_compile.manifest.offload import Primitives, Speculation
from msao_compile.manifest.schema import Deployment, Route
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.base import Handler, Traffic
from msao_compile.runtime.wire.message import Message

LIMIT = 48
DIGITS = 1.0 / 3.0


@dataclass(frozen=True)
class Asked:
    """A labelled question; `kind` groups what is alike."""

    question: Question
    answer: str
    kind: str


@dataclass(frozen=True)
class Pair:
    """The two models of a deployment that speculate, and what was measured of them."""

    drafter: ModelSession
    verifier: ModelSession
    route: Route
    settings: Speculation
    here: Primitives
    there: Primitives


def pair_of(runtime: Runtime, cloud: ModelSession | None = None) -> Pair:
    """The first task that speculates.

    Raises:
        DeploymentError: none does, or nothing was measured.
    """
    deployment: Deployment = runtime.deployment
    entry = next(iter(deployment.speculation), None)
    times = {times.model: times for times in deployment.primitives}
    if entry is None or not {entry.drafter, entry.verifier} <= set(times):
        raise DeploymentError(
            f"{runtime.folder}: no task has a model that drafts and one that verifies, both measured: build a recipe "
            "with roles draft and target for local-cpu"
        )
    route = next(route for route in deployment.routes if (route.name, route.task) == ("cloud", entry.task))
    verifier = cloud or runtime.session(entry.verifier)
    return Pair(runtime.session(entry.drafter), verifier, route, entry, times[entry.drafter], times[entry.verifier])


def asked(rows: Sequence[dict[str, Any]], folder: Path) -> list[Asked]:
    """Questions from rows with `question`, `answer`, `kind` and, of a picture, `image`.

    Raises:
        InputError: a picture cannot be read.
    """
    found = []
    for row in rows:
        try:
            pictures = ((folder / row["image"]).read_bytes(),) if row.get("image") else ()
        except OSError as error:
            raise InputError(f"{folder / row['image']}: the picture of a sample cannot be read ({error})") from error
        question = Question(row["question"], pictures, LIMIT, SamplingParameters())
        found.append(Asked(question, row["answer"], row.get("kind", "")))
    return found


@dataclass(frozen=True)
class Seen:
    """What a policy did at a point: outcomes by question, and the cloud's busy milliseconds by kind of work."""

    outcomes: list[Outcome]
    cloud_busy_ms: dict[str, float]
    passed_ms: float


def point(
    pair: Pair, setting: Setting, shape: Shape, sessions: int, policy: Policy, questions: Sequence[Asked]
) -> Seen:
    """Ask every question, `sessions` edges in turn, in virtual time."""
    return virtual.run(_point(pair, setting, shape, sessions, policy, questions))


async def _point(
    pair: Pair, setting: Setting, shape: Shape, sessions: int, policy: Policy, questions: Sequence[Asked]
) -> Seen:
    there, here = setting.cloud.primitives(pair.there), setting.edge.primitives(pair.here)
    device = PacedDevice("cloud", there, setting.cloud.turn_ms)
    service = CloudService(pair.verifier, CloudLimits(sessions=max(2 * sessions, 4), waiting=1024), device)
    outcomes: dict[int, Outcome] = {}

    async def client(index: int) -> None:
        link = ShapedLink(
            _untimed(service.handle), shape, index, setting.picture_bytes, setting.message_ms, pair.verifier.model.name
        )
        own = PacedDevice(f"edge{index}", here, setting.edge.turn_ms)
        edge = Edge(pair.drafter, pair.verifier, pair.route, own, link, Adviser(pair.settings, here, there))
        await _greet(edge)
        for place in range(index, len(questions), sessions):
            outcomes[place] = await policy.answer(edge, questions[place].question)

    await asyncio.gather(*(client(index) for index in range(sessions)))
    passed_ms = asyncio.get_running_loop().time() * 1e3
    return Seen([outcomes[place] for place in range(len(questions))], dict(device.busy_ms), passed_ms)


def _untimed(handle: Handler) -> Handler:
    """With as many digits of the times that modules took as there would be, but always the same: they make runs differ
    by some bytes."""

    async def replies(message: Message) -> AsyncIterator[Message]:
        async for reply in handle(message):
            if "modules_ms" in reply.fields:
                reply.fields["modules_ms"] = dict.fromkeys(reply.fields["modules_ms"], DIGITS)
            yield reply

    return replies


async def _greet(edge: Edge) -> None:
    """The handshake of a connection, which tells the round trip."""
    loop = asyncio.get_running_loop()
    for _ in range(2):
        began_s = loop.time()
        async for _reply in edge.link.call(c.write("hello", c.Hello(contract=c.CONTRACT)), Traffic()):
            edge.adviser.link.heard(loop.time() * 1e3, (loop.time() - began_s) * 1e3)


def summary(pair: Pair, seen: Seen, questions: Sequence[Asked], reference: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one policy at one point; `reference` is the cloud's own answers to the same questions."""
    outcomes = seen.outcomes
    totals = [outcome.total_ms for outcome in outcomes]
    firsts = [outcome.first_ms for outcome in outcomes if outcome.first_ms is not None]
    decode = pair.verifier.tokenizer.decode
    right = [decode(found.tokens).strip() == one.answer.strip() for found, one in zip(outcomes, questions, strict=True)]
    tokens = sum(len(outcome.tokens) for outcome in outcomes)
    accepted = sum(outcome.accepted for outcome in outcomes)
    judged = accepted + sum(outcome.rejected for outcome in outcomes)
    drafted = sum(outcome.drafted for outcome in outcomes)
    gaps = [(outcome.total_ms - outcome.first_ms) / (len(outcome.tokens) - 1)
            for outcome in outcomes if outcome.first_ms is not None and len(outcome.tokens) > 1]  # fmt: skip
    return {
        "n": len(outcomes),
        "mean_ms": statistics.fmean(totals),
        "p50_ms": float(np.percentile(totals, 50)),
        "p95_ms": float(np.percentile(totals, 95)),
        "ttft_ms": statistics.fmean(firsts) if firsts else None,
        "tpot_ms": statistics.fmean(gaps) if gaps else None,
        "tokens_per_s": 1e3 * tokens / seen.passed_ms,
        "accuracy": sum(right) / len(right),
        "equal": sum(found.tokens == other.tokens for found, other in zip(outcomes, reference, strict=True)),
        "up_bytes": statistics.fmean(outcome.up_bytes for outcome in outcomes),
        "down_bytes": statistics.fmean(outcome.down_bytes for outcome in outcomes),
        "cloud_ms_per_token": sum(seen.cloud_busy_ms.values()) / max(tokens, 1),
        "accepted": accepted / drafted if drafted else None,
        "kept": accepted / judged if judged else None,
        "rounds": statistics.fmean(outcome.rounds for outcome in outcomes),
        "alone": sum(not outcome.verified for outcome in outcomes),
        "guarded": sum(outcome.guarded for outcome in outcomes),
    }
