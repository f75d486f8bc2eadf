"""Ways to answer that are compared: the product's own, it without one of its parts, and those of its neighbours.

Those of others are written after what they report, on the same parts: what they decide is theirs, what carries it out
is the code that ships. All are given the same links, devices and questions.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msao_compile.bench.sides import Edge, Outcome, from_cloud, from_edge, speculated
from msao_compile.manifest.offload import Acceptance
from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.calibrated import Calibration, Reduced
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.policy import Choice, Limits
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question, calibrated, plain, strict

Answer = Callable[[Edge, Question], Awaitable[Outcome]]
STOP_AND_WAIT = 4
"""Draft tokens of a round that is waited for: the optimum of most papers' tables lies between 3 and 5."""
SKIPS = 0.5
"""Of CoVSpec: drafts of this confidence are not verified."""
SURE = Acceptance(from_confidence=(0.0,), chance=(1.0,))
"""Drafts whose worth is not asked."""


@dataclass(frozen=True)
class Policy:
    """A name, whether its answers are the cloud's own token for token, and what it does."""

    name: str
    lossless: bool
    answer: Answer
    what: str


def policies(deployment: Deployment | None, drafter: ModelSession | None = None) -> dict[str, Policy]:
    """Every policy by name, with fresh memories; without a deployment for their names only."""
    fit = deployment.mas if deployment is not None else None
    reader = None if fit is None or drafter is None else Reader(fit, drafter)
    shown = None if fit is None or fit.bound is None or drafter is None else Calibration(fit, fit.bound.upper, drafter)
    found = [
        Policy("cloud-only", True, from_cloud, "the cloud decodes and streams"),
        Policy("edge-only", False, from_edge, "the edge model alone"),
        Policy("stop-and-wait", True, _stop_and_wait, f"{STOP_AND_WAIT} drafts a round, one round at a time"),
        Policy("cs-ucb", False, Bandit().answer, "edge or cloud by an upper confidence bound, after PerLLM"),
        Policy("covspec", False, _covspec, "unsure drafts are verified only, after CoVSpec"),
        Policy("auto", True, Auto(reader=reader).answer, "strict: cheapest of the lossless routes, with the guard"),
        Policy("auto, no MAS", True, Auto().answer, "strict, the drafter sees every picture whole"),
        Policy("auto, no speculation", True, Auto(speculation=False).answer, "strict, the cloud streams"),
        Policy("auto, no guard", True, Auto(reader=reader, guard=False).answer, "strict, always speculating"),
    ]
    if deployment is None or shown is not None:
        found += [
            Policy("calibrated", False, Auto(calibration=shown).answer, "edge alone where sure, pictures dropped"),
            Policy("calibrated, no MAS", False, Auto(calibration=shown, reduces=False).answer, "no picture is dropped"),
            Policy("calibrated, no speculation", False, Auto(speculation=False, calibration=shown).answer,
                   "the cloud streams where the edge is not sure"),
            Policy("calibrated, no scheduling", False, Auto(calibration=shown, schedules=False).answer,
                   "the edge always first, then rounds one at a time"),
        ]  # fmt: skip
    return {policy.name: policy for policy in found}


async def _stop_and_wait(edge: Edge, question: Question) -> Outcome:
    fixed = {"draft_tokens": STOP_AND_WAIT, "confidence": 0.0, "confidence_min": 0.0, "acceptance": SURE}
    settings = edge.adviser.settings.model_copy(update=fixed)
    plan = replace(edge.plan(question, "speculate"), settings=settings, rounds=1, burst=0, rest=0, goes_on=None)
    return await speculated(edge, plain(question), plan)


async def _covspec(edge: Edge, question: Question) -> Outcome:
    """Drafts of which the drafter is sure are not verified at all; its answer stands where every one is."""
    plan = replace(edge.plan(question, "speculate"), rounds=1, burst=0, rest=0, goes_on=None)
    plan = replace(plan, alone=AtLeast(SKIPS, first=False))
    return await speculated(edge, plain(question), plan)


@dataclass(frozen=True)
class AtLeast:
    """An answer stands where the drafter was so sure of every token."""

    confidence: float
    first: bool = False

    def enough(self, confidences: Sequence[float]) -> bool:
        """As `Alone.enough`."""
        return min(confidences) >= self.confidence

    def hopeless(self, confidences: Sequence[float]) -> bool:
        """As `Alone.hopeless`."""
        return min(confidences) < self.confidence


@dataclass
class Bandit:
    """CS-UCB of PerLLM (arXiv 2405.14636) for two servers: an upper confidence bound on the reward, less for deadlines
    that were missed. It does not know which answers are right."""

    deadline_ms: float = 1000.0
    wide: float = 0.5
    seen: dict[tuple[bool, str], list[float]] = field(default_factory=dict)

    async def answer(self, edge: Edge, question: Question) -> Outcome:
        """Choose, answer, learn."""
        kind = bool(question.pictures)
        arms: Mapping[str, Answer] = {"edge": from_edge, "cloud": from_cloud}
        total = sum(len(self.seen.get((kind, name), ())) for name in arms)

        def bound(name: str) -> float:
            rewards = self.seen.get((kind, name), [])
            if not rewards:
                return math.inf
            return sum(rewards) / len(rewards) + self.wide * math.sqrt(2 * math.log(max(total, 1)) / len(rewards))

        taken = max(arms, key=bound)
        found = await arms[taken](edge, question)
        missed = found.total_ms > self.deadline_ms
        self.seen.setdefault((kind, taken), []).append(-found.total_ms / self.deadline_ms - missed)
        return found


@dataclass
class Auto:
    """The product's policy: `decide` for each request, gates and guard for each step; parts of it can be left out.

    `schedules` False: nothing is chosen by link or load, the edge is always asked first and rounds are waited for.
    """

    speculation: bool = True
    guard: bool = True
    calibration: Calibration | None = None
    reader: Reader | None = None
    reduces: bool = True
    schedules: bool = True

    async def answer(self, edge: Edge, question: Question) -> Outcome:
        """Decide, answer, learn."""
        began = asyncio.get_running_loop().time()
        routes: frozenset[Choice] = frozenset(("cloud", "speculate") if self.speculation else ("cloud",))
        told = getattr(edge.link, "picture_bytes", None)
        sizes = [told or size for size in question.sizes]
        seen, left = Seen(), None
        if self.calibration is not None:
            left = await self._read(edge, question, seen, self.calibration)
        now_ms = asyncio.get_running_loop().time() * 1e3
        limits = Limits(mode="strict" if left is None else "calibrated", routes=routes)
        decision = edge.adviser.decide(sizes, now_ms, limits, left)
        if not self.schedules:
            decision = replace(decision, first=True, payload="full" if left is None else left.rung)
        chooses = self.guard and self.schedules
        route: Choice = decision.route if chooses else "speculate"
        if self.calibration is None or left is None:
            view = strict(question, self.reader) if route == "speculate" else plain(question)
        else:
            view = calibrated(question, self.calibration, left, decision, edge.adviser.packing, seen)
        plan = replace(edge.plan(question, route), alone=view.alone)
        if not chooses:
            plan = replace(plan, goes_on=None)
        if not self.schedules:
            plan = replace(plan, rounds=1, rest=0)
        waited_ms = (asyncio.get_running_loop().time() - began) * 1e3
        found = await speculated(edge, view, plan)
        found.route, found.guarded = route, decision.guarded
        found.total_ms += waited_ms
        found.first_ms = None if found.first_ms is None else found.first_ms + waited_ms
        return found

    async def _read(self, edge: Edge, question: Question, seen: Seen, calibration: Calibration) -> Reduced:
        """As `Runtime` does it: what may be left of a question, and who judges whether the edge may answer alone."""
        for kind, count, work in calibration.reader.pieces(question.prompt, question.pictures, seen, Clock()):
            await edge.device.run(kind, count, work)
        left = calibration.read(question.prompt, len(question.pictures), seen)
        return left if self.reduces else replace(left, rung="full")
