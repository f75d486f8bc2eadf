"""Questions put to a cloud in this process, drafted here or streamed there, over a link that may be faulty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from msao_compile.bench import virtual
from msao_compile.bench.paced import PacedDevice
from msao_compile.manifest.offload import Acceptance, Line, Primitives, Rule, Speculation
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.device import Device
from msao_compile.runtime.remote import Patience, RemoteSession
from msao_compile.runtime.rules import choose
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession, Request
from msao_compile.runtime.speculate.client import Speculator
from msao_compile.runtime.speculate.drafter import Drafter
from msao_compile.runtime.speculate.gates import Pace
from msao_compile.runtime.speculate.plan import Account, Plan
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.faulty import Faults, FaultyLink
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

T = TypeVar("T")
QUICK = Patience(tries=25, wait_ms=1.0, silence_ms=2000.0)
EVERYTHING = Faults(
    late_ms=2.0, lost_before=0.04, lost_after=0.04, sent_twice=0.05, told_twice=0.1, forgotten=0.04, stalled=0.01,
    stall_ms=20.0, restarted=0.01,
)  # fmt: skip

_SOON = Line(fixed_ms=1.0, each_ms=0.0)
TIMES = Primitives(model="any", prepare=_SOON, encode=_SOON, prefill=_SOON, decode=_SOON, verify=_SOON)
"""Each piece of work takes a millisecond of virtual time."""


def in_virtual_time(work: Coroutine[Any, Any, T], limit_s: float = 600.0) -> T:
    """What a coroutine gives, the same on any machine; one that goes on for `limit_s` of virtual time does not end."""
    return virtual.run(asyncio.wait_for(work, limit_s))


def device(name: str) -> Device:
    """A device of the time that passes here: in virtual time an emulated one."""
    emulated = isinstance(asyncio.get_running_loop(), virtual.VirtualLoop)
    return PacedDevice(name, TIMES) if emulated else Device(name)


def settings(drafts: int, rule: Rule = "gumbel") -> Speculation:
    """How it is drafted: so many at most, and asking early where the drafter is unsure."""
    return Speculation(
        task="vqa", drafter="edge", verifier="cloud", rule=rule, draft_tokens=drafts, confidence=0.3,
        confidence_min=0.05, confidence_max=0.9,
        acceptance=Acceptance(from_confidence=(0.0, 0.5), chance=(0.5, 0.95)),
    )  # fmt: skip


def opening(verifier: ModelSession, prompt: str, limit: int, sampling: SamplingParameters, rule: Rule) -> Message:
    """The message that opens a session, as `routes.outgoing` writes it for a prompt."""
    fields = {
        "form": "prompt", "prompt": prompt, "modules": dict(verifier.model.components),
        "tokenizer": verifier.model.tokenizer_digest, "limit": limit, "sampling": vars(sampling), "rule": rule,
    }  # fmt: skip
    return Message("prefill", fields)


def alone(session: ModelSession, request: Request, limit: int, every: Sequence[SamplingParameters]) -> list[list[int]]:
    """What the model by itself answers, token by token, for each way to choose."""
    logits, talk = session.prefill(request, session.encode(request.tensors, Clock()), Clock())
    length, vocabulary, stops = talk.cache.length, session.tokenizer.vocab_size, session.tokenizer.eos_token_ids
    found: list[list[int]] = []
    for sampling in every:
        talk.cache.rollback(length)
        answer: list[int] = []
        token = choose(logits[-1], 0, sampling, vocabulary)
        while token not in stops and len(answer) < limit:
            answer.append(token)
            if len(answer) < limit:
                token = choose(
                    session.extend(np.asarray([token]), talk, Clock())[-1], len(answer), sampling, vocabulary
                )
        found.append(answer)
    return found


@dataclass
class Asked:
    """What came of one question."""

    tokens: list[int]
    account: Account
    remote: RemoteSession


@dataclass
class Asker:
    """Asks over one link; `edge` is what drafts, and each token is looked at for `pause_s`."""

    edge: ModelSession
    link: Link
    patience: Patience = QUICK
    device: Device = field(default_factory=lambda: device("edge"))
    pause_s: float = 0.0

    async def drafted(
        self,
        message: Message,
        request: Request,
        plan: Plan,
        sampling: SamplingParameters,
    ) -> Asked:
        """Speculated."""
        rule = message.fields["rule"]
        remote = RemoteSession(self.link, message, Clock(), Traffic(), self.patience)
        drafter = Drafter(self.edge, rule, sampling)
        pieces = drafter.opening(lambda: request, len(request.tensors), Clock())
        speculator = Speculator(drafter, self.device, remote, plan)
        try:
            found = []
            async for token in speculator.tokens(pieces):
                found.append(token)
                await asyncio.sleep(self.pause_s)
        finally:
            remote.leave()
        return Asked(found, speculator.account, remote)

    async def streamed(self, message: Message) -> Asked:
        """Written by the cloud alone."""
        remote = RemoteSession(self.link, message, Clock(), Traffic(), self.patience)
        try:
            found = [token async for token in remote.tokens()]
        finally:
            remote.leave()
        return Asked(found, Account(), remote)


def plan_for(edge: ModelSession, drafts: int, limit: int, **more: object) -> Plan:
    """A plan for quick drafts and slow rounds; the cloud goes on by itself for half a round."""
    rule = more.pop("rule", "gumbel")
    given: dict[str, object] = {"patience": QUICK, "rest": drafts // 2, **more}
    stops = frozenset(edge.tokenizer.eos_token_ids)
    return Plan(settings(drafts, rule), Pace(0.3, 0.1, 3.0), limit, stops, **given)  # type: ignore[arg-type]


def cloud(verifier: ModelSession, sessions: int = 8, idle_ms: float = 200.0) -> CloudService:
    """A cloud whose sessions make room soon."""
    return CloudService(verifier, CloudLimits(sessions=sessions, idle_ms=idle_ms), device("cloud"))


def faulty(verifier: ModelSession, faults: Faults, seed: int, **limits: float) -> tuple[FaultyLink, list[CloudService]]:
    """A link to a cloud, and the clouds there were: each start of it adds one."""
    lives = [cloud(verifier, **limits)]  # type: ignore[arg-type]

    def restart() -> Link:
        lives.append(cloud(verifier, **limits))  # type: ignore[arg-type]
        return Loopback(lives[-1].handle)

    return FaultyLink(Loopback(lives[0].handle), faults, seed, restart), lives


async def at_once(count: int, ask: Callable[[int], object], most: int = 8) -> list[object]:
    """`ask(index)` for each index, some at a time."""
    room = asyncio.Semaphore(most)

    async def one(index: int) -> object:
        async with room:
            return await ask(index)  # type: ignore[misc]

    return await asyncio.gather(*(one(index) for index in range(count)))
