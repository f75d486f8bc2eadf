"""One edge of an emulated run: its model, device and link, and what it has learned of them so far."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from msao_compile.manifest.schema import Route
from msao_compile.runtime.adviser import LEAST, Adviser
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.device import Device
from msao_compile.runtime.policy import Choice
from msao_compile.runtime.remote import Patience, RemoteSession
from msao_compile.runtime.routes import outgoing
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.client import Speculator
from msao_compile.runtime.speculate.drafter import Drafter
from msao_compile.runtime.speculate.plan import Plan
from msao_compile.runtime.views import Question, View, plain
from msao_compile.runtime.wire.base import Link, Traffic


@dataclass
class Outcome:
    """One answer as it was seen: tokens, when the first and the last came, and what crossed."""

    tokens: list[int] = field(default_factory=list)
    first_ms: float | None = None
    total_ms: float = 0.0
    route: str = ""
    up_bytes: int = 0
    down_bytes: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    rounds: int = 0
    guarded: bool = False
    verified: bool = True


@dataclass
class Edge:
    """Where questions are asked; `adviser` is what it learned of its cloud."""

    drafter: ModelSession
    verifier: ModelSession
    route: Route
    device: Device
    link: Link
    adviser: Adviser

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self.verifier.tokenizer.eos_token_ids)

    def remote(self, question: Question, traffic: Traffic) -> RemoteSession:
        """A session in the cloud for a question, not opened yet."""
        clock = Clock()
        message = outgoing(self.verifier, question, clock, self.route)
        return RemoteSession(self.link, message, clock, traffic, Patience(), self.adviser.link)

    def learn(self, remote: RemoteSession, found: Outcome) -> None:
        """What an answer of the cloud's told."""
        prompt_tokens = remote.extent.prompt_tokens or 0
        self.adviser.learn(prompt_tokens, len(found.tokens), found.accepted, found.rejected)
        if prompt_tokens:
            self.adviser.busy(remote.queue_ms, remote.step_wait_ms)
        if found.first_ms is not None and found.rounds and found.verified and len(found.tokens) >= LEAST:
            spent_ms = (found.total_ms - found.first_ms) / len(found.tokens)
            self.adviser.paced(spent_ms, asyncio.get_running_loop().time() * 1e3)

    def plan(self, question: Question, route: Choice) -> Plan:
        """How a question is drafted, or streamed where `route` is `cloud`."""
        now_ms = asyncio.get_running_loop().time() * 1e3
        return self.adviser.plan(question.limit, self.stops, now_ms, route, Patience())


async def from_cloud(edge: Edge, question: Question) -> Outcome:
    """The cloud decodes, tokens stream."""
    watch, traffic = Watch("cloud"), Traffic()
    remote = edge.remote(question, traffic)
    try:
        async for token in remote.tokens():
            watch.token(token)
    finally:
        remote.leave()
    edge.learn(remote, watch.outcome)
    return watch.end(traffic)


async def from_edge(edge: Edge, question: Question) -> Outcome:
    """The drafter answers alone."""
    watch, drafter = Watch("edge"), Drafter(edge.drafter, "greedy", question.sampling)
    for kind, count, work in plain(question).opening(drafter, Clock()):
        await edge.device.run(kind, count, work)
    answer: list[int] = []
    while question.limit is None or len(answer) < question.limit:
        token = (await edge.device.run("draft", 1, lambda: drafter.draft(answer))).token
        if token in edge.stops:
            break
        answer.append(token)
        watch.token(token)
    watch.outcome.verified = False
    return watch.end(Traffic())


async def speculated(edge: Edge, view: View, plan: Plan) -> Outcome:
    """The drafter drafts, the cloud verifies."""
    watch, traffic, question = Watch("speculate"), Traffic(), view.there
    drafter = Drafter(edge.drafter, "greedy" if question.sampling.greedy else plan.settings.rule, question.sampling)
    remote = edge.remote(question, traffic)
    speculator = Speculator(drafter, edge.device, remote, plan)
    try:
        async for token in speculator.tokens(view.opening(drafter, Clock())):
            watch.token(token)
    finally:
        remote.leave()
    found, account = watch.end(traffic), speculator.account
    found.drafted, found.accepted, found.rejected = account.drafted, account.accepted, account.rejected
    found.rounds = account.rounds
    found.verified = account.unverified == 0
    edge.learn(remote, found)
    return found


class Watch:
    """Times an answer in the loop's time."""

    def __init__(self, route: str) -> None:
        self.outcome = Outcome(route=route)
        self._began = asyncio.get_running_loop().time()

    def token(self, token: int) -> None:
        """A token is there."""
        self.outcome.tokens.append(token)
        if self.outcome.first_ms is None:
            self.outcome.first_ms = self._passed_ms()

    def end(self, traffic: Traffic) -> Outcome:
        """The answer is whole."""
        self.outcome.total_ms = self._passed_ms()
        self.outcome.up_bytes, self.outcome.down_bytes = traffic.up, traffic.down
        return self.outcome

    def _passed_ms(self) -> float:
        return (asyncio.get_running_loop().time() - self._began) * 1e3
