"""The ways to answer: all modules here, or a part of them and the rest behind a link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Set
from dataclasses import dataclass, field

import numpy as np

from msao_compile.manifest.schema import Route
from msao_compile.runtime.adviser import LEAST, Adviser
from msao_compile.runtime.answer import Clock, Extent
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.device import Device
from msao_compile.runtime.generate import tokens
from msao_compile.runtime.remote import Patience, RemoteSession
from msao_compile.runtime.session import ROPE_INPUTS, ModelSession, Request
from msao_compile.runtime.speculate.client import Speculator
from msao_compile.runtime.speculate.drafter import Drafter, Piece
from msao_compile.runtime.speculate.plan import Account, Plan
from msao_compile.runtime.tokens import Tokenizer
from msao_compile.runtime.views import Question, View, as_file, plain
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import PICTURE
from msao_compile.runtime.wire.message import Message


@dataclass(frozen=True)
class RouteRun:
    """A request under way: draw `tokens`, then read `clock`, `traffic`, `extent` and `account`."""

    tokens: Iterator[int]
    tokenizer: Tokenizer
    clock: Clock
    verified: bool
    account: Account = field(default_factory=Account)
    traffic: Traffic = field(default_factory=Traffic)
    extent: Extent = field(default_factory=Extent)


def edge(session: ModelSession, question: Question, clock: Clock) -> RouteRun:
    """Every module here."""
    with clock.module("preprocess"):
        request = session.prepare(question.prompt, question.pictures)
    limit = session.room(len(request.ids), question.limit)

    def run() -> Iterator[int]:
        logits, talk = session.prefill(request, session.encode(request.tensors, clock), clock)
        for token in tokens(session, logits[-1], talk, question.sampling, limit):
            clock.token()
            yield token

    verified = session.model.role == "target"
    return RouteRun(run(), session.tokenizer, clock, verified, extent=Extent(len(request.ids), limit))


def remote(
    session: ModelSession, question: Question, clock: Clock, link: Link, route: Route, patience: Patience
) -> RouteRun:
    """The modules that `route.hosts` puts in the cloud run there; what crosses is the smallest thing that can."""
    message = outgoing(session, question, clock, route)
    traffic = Traffic()
    there = RemoteSession(link, message, clock, traffic, patience)

    async def run() -> AsyncIterator[int]:
        try:
            async for token in there.tokens():
                clock.token()
                yield token
        finally:
            there.leave()

    return RouteRun(
        bridge().iterate(run()),
        session.tokenizer,
        clock,
        session.model.role == "target",
        traffic=traffic,
        extent=there.extent,
    )


@dataclass(frozen=True)
class Pair:
    """Who drafts here and who verifies there, and the device that drafts."""

    drafter: ModelSession
    verifier: ModelSession
    device: Device


def speculative(
    pair: Pair, view: View, link: Link, route: Route, plan: Plan, adviser: Adviser, clock: Clock
) -> RouteRun:
    """The drafter's tokens here, verified there: what comes out is the verifier's answer.

    Pixels and prompt, or what the verifier's encoder makes of them where that is here, are on their way before the
    drafter looks at them.
    """
    question, here = view.there, [component for component, host in route.hosts.items() if host == "edge"]
    before_ms = _spent_ms(clock, here)
    message = outgoing(pair.verifier, question, clock, route)
    encode_ms = _spent_ms(clock, here) - before_ms
    rule = "greedy" if question.sampling.greedy else plan.settings.rule
    message.fields["rule"] = rule
    traffic, drafter = Traffic(), Drafter(pair.drafter, rule, question.sampling)
    there = RemoteSession(link, message, clock, traffic, plan.patience, adviser.link)
    speculator = Speculator(drafter, pair.device, there, plan)

    def whole(drafter: Drafter) -> Iterator[Piece]:
        return plain(question).opening(drafter, clock)

    async def run() -> AsyncIterator[int]:
        try:
            async for token in speculator.tokens(view.opening(drafter, clock), whole if view.lessened else None):
                clock.token()
                yield token
        finally:
            there.leave()
            if view.reader is not None:
                view.reader.learn(clock)
            account = speculator.account
            prompt_tokens = there.extent.prompt_tokens or 0
            if not prompt_tokens and speculator.drafter.began:
                there.extent.prompt_tokens = speculator.drafter.prompt_tokens
            if account.unverified:
                there.extent.limit = speculator.limit
            adviser.learn(prompt_tokens, clock.tokens, account.accepted, account.rejected)
            if prompt_tokens:
                adviser.busy(there.queue_ms, there.step_wait_ms)
            if here and question.pictures and prompt_tokens and not there.reopened:
                adviser.encoded(encode_ms, traffic.up, len(question.pictures))
            if account.rounds and not account.unverified and clock.tokens >= LEAST and clock.first is not None:
                spent_ms = (time.perf_counter() - clock.first) * 1e3 / clock.tokens
                adviser.paced(spent_ms, asyncio.get_running_loop().time() * 1e3)

    return RouteRun(
        bridge().iterate(run()), pair.verifier.tokenizer, clock, pair.verifier.model.role == "target",
        speculator.account, traffic, there.extent,
    )  # fmt: skip


def _spent_ms(clock: Clock, components: Iterable[str]) -> float:
    return sum(clock.modules_ms.get(component, 0.0) for component in components)


def outgoing(session: ModelSession, question: Question, clock: Clock, route: Route) -> Message:
    """The message that opens a session of this model in the cloud; its modules here are run first."""
    here = {component for component, host in route.hosts.items() if host == "edge"}
    with clock.module("preprocess"):
        if not here:
            files = {
                f"{PICTURE}{index:03}": np.frombuffer(as_file(picture), np.uint8)
                for index, picture in enumerate(question.pictures)
            }
            shown = {"shown": question.shown} if question.shown else {}
            message = Message("prefill", {"form": "prompt", "prompt": question.prompt, **shown}, files)
        else:
            request = session.prepare(question.prompt, question.pictures)
            session.room(len(request.ids), question.limit)
    if here:
        message = crossing(session, request, here, clock)
    message.fields.update(
        modules=dict(session.model.components),
        tokenizer=session.model.tokenizer_digest,
        limit=question.limit,
        sampling=vars(question.sampling),
        rule="greedy" if question.sampling.greedy else "gumbel",
    )
    return message


def crossing(session: ModelSession, request: Request, here: Set[str], clock: Clock) -> Message:
    """Run the modules that are `here`, the encoder at least; what the cloud needs to go on."""
    encoded = session.encode(request.tensors, clock)
    session.check_placeholders(request, encoded)
    held = session.context(request.tensors)
    if "embed_tokens" in here:
        positions, offset = session.positions(request)
        embeds = session.embed(request.ids[None], {**held, **encoded}, clock)
        known = {**held, **encoded}
        crossed = {name: value for name, value in known.items() if name in session.decoder.inputs}
        crossed = {**session.later(known), **crossed}  # the cloud embeds the tokens of the answer
        return Message(
            "prefill", {"form": "embeds", "offset": offset}, {**crossed, **embeds, "position_ids": positions}
        )
    read = {name: value for name, value in request.tensors.items() if name in (*ROPE_INPUTS, "input_ids")}
    tensors = {session.facts.tokens: request.ids, **held, **read, **encoded}
    return Message("prefill", {"form": "features", "encoded": list(encoded)}, tensors)
