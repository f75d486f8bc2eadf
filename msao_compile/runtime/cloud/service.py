"""What a cloud does for its clients: each operation of the contract, on sessions that are batched together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from msao_compile.errors import (
    Busy,
    ContractMismatch,
    DeadlineExceeded,
    InputError,
    MsaoError,
    SessionLost,
)
from msao_compile.manifest.schema import KV_LAYOUT
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.cloud.opening import prefilled, prepared
from msao_compile.runtime.cloud.rows import rows_of
from msao_compile.runtime.cloud.scheduler import Scheduler
from msao_compile.runtime.cloud.sessions import Session, Sessions
from msao_compile.runtime.device import Device, loop_ms
from msao_compile.runtime.rules import choose, rejection, same_token
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.message import Message

logger = logging.getLogger(__name__)
T = TypeVar("T")
SUM_ERROR = 1e-3
"""Of probabilities in float32."""


@dataclass(frozen=True)
class CloudLimits:
    """What a cloud takes at most; `idle_ms`: so long a session is kept for a client that is silent."""

    sessions: int = 16
    waiting: int = 64
    request_bytes: int = 16 << 20
    picture_pixels: int = 20_000_000
    idle_ms: float = 10_000.0


@dataclass(frozen=True)
class _Asked:
    """A prefill message, its fields, and who sent it."""

    fields: c.Prefill
    message: Message
    client: str


class CloudService:
    """Serves one model to many clients. `handle` is what every transport calls."""

    def __init__(
        self, session: ModelSession, limits: CloudLimits = CloudLimits(), device: Device | None = None,
        together: bool = True,
    ) -> None:  # fmt: skip
        self.session, self.limits = session, limits
        self.device = device or Device("cloud")
        self.rows = rows_of(session, limits.sessions)
        self.sessions = Sessions(self.rows, limits.idle_ms)
        self.scheduler = Scheduler(self.rows, self.device, limits.waiting, together)
        tokenizer = session.tokenizer
        self._stops, self._vocabulary = frozenset(tokenizer.eos_token_ids), tokenizer.vocab_size
        self._active, self._draining = 0, False
        self._openings: dict[str, asyncio.Future[Any]] = {}
        self._work: set[asyncio.Future[Any]] = set()
        self._serve: Mapping[str, Callable[[Any, Message], AsyncIterator[Message]]] = {
            "hello": self._hello,
            "verify": self._verify,
            "decode": self._decode,
            "close": self._close,
        }

    async def handle(self, message: Message, client: str = "") -> AsyncIterator[Message]:
        """The replies to one request; every fault is a reply of its own, `error`, and the last.

        `client` is who asks, as the server knows it: prompts and rows are shared fairly between clients.
        """
        self._active += 1
        try:
            fields = c.read(message, c.REQUESTS)
            serve = self._prefill(fields, message, client) if message.kind == "prefill" else None
            async for reply in serve or self._serve[message.kind](fields, message):
                yield reply
        except TimeoutError:
            yield c.fault(DeadlineExceeded(f"{message.kind} took longer than its deadline_ms: allow more"))
        except MsaoError as error:
            yield c.fault(error)
        except Exception:  # the request boundary: other sessions go on
            logger.exception("%s failed", message.kind)
            yield c.write("error", c.Fault(code="internal", message=f"{message.kind} failed in the cloud: see its log"))
        finally:
            self._active -= 1

    def gauges(self) -> dict[str, float]:
        """How full it is now, and what it did so far."""
        return {
            **self.sessions.gauges(),
            **self.scheduler.gauges(),
            "requests_active": self._active,
            **{f"busy_ms_{kind}": ms for kind, ms in self.device.busy_ms.items()},
        }

    async def drain(self, timeout_s: float) -> bool:
        """Take no new sessions and wait until requests under way are answered; whether all were in time."""
        self._draining = True
        end = asyncio.get_running_loop().time() + timeout_s
        while self._active and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return not self._active

    async def _hello(self, fields: c.Hello, message: Message) -> AsyncIterator[Message]:
        model = self.session.model
        if fields.contract != c.CONTRACT:
            raise ContractMismatch(
                f"the client speaks {fields.contract!r}, this cloud {c.CONTRACT}: install the same msao-compile on both"
            )
        if fields.model not in (None, model.name):
            raise ContractMismatch(f"this cloud serves model {model.name!r}, not {fields.model!r}: connect to another")
        own = self.limits
        limits = c.Limits(
            request_bytes=own.request_bytes, picture_pixels=own.picture_pixels, sessions=own.sessions,
            draft_tokens=c.MOST_DRAFTS,
        )  # fmt: skip
        yield c.write("welcome", c.Welcome(
            contract=c.CONTRACT, model=model.name, modules=dict(model.components), tokenizer=model.tokenizer_digest,
            vocab_size=self._vocabulary, kv_layout=KV_LAYOUT, kv_capacity=self.session.facts.kv_capacity,
            rules=("greedy", "gumbel", "reject"), limits=limits,
        ))  # fmt: skip

    async def _prefill(self, fields: c.Prefill, message: Message, client: str) -> AsyncIterator[Message]:
        if self._draining:
            raise Busy("this cloud is about to stop: use another, or try again later", 1000)
        self._same_build(fields)
        self._check_committed(fields)
        clock, end, began_ms = Clock(), self._end(fields.deadline_ms), loop_ms()
        asked, earlier = _Asked(fields, message, client), self._openings.get(fields.session)
        opening = asyncio.ensure_future(self._opened(asked, clock, earlier))
        self._openings[fields.session] = opening
        session, first = await self._within(opening, end)
        told = len(fields.committed) + len(first)
        yield c.write(
            "ready",
            c.Ready(session=session.name, base=len(fields.committed), prompt_tokens=session.prompt_tokens,
                    limit=session.limit, modules_ms=clock.modules_ms, spent_ms=loop_ms() - began_ms,
                    queue_ms=self.scheduler.prompt_wait_ms, step_wait_ms=self.scheduler.step_wait_ms,
                    finish=session.ended(told)),
            {c.TOKENS: np.asarray(first, np.int64)},
        )  # fmt: skip
        stream = session.limit if fields.stream is None else fields.stream
        if stream:
            stop = len(fields.committed) + stream
            async for reply in self._stream(session, told, stop, end, fields.until_asked):
                yield reply

    def _same_build(self, fields: c.Prefill) -> None:
        model = self.session.model
        if fields.modules != model.components:
            raise ContractMismatch(
                "the cloud serves other modules than the edge expects: deploy the same build on both"
            )
        if fields.tokenizer != model.tokenizer_digest:
            raise ContractMismatch("edge and cloud have different tokenizers: deploy the same build on both")

    def _check_committed(self, fields: c.Prefill) -> None:
        if fields.limit is not None and len(fields.committed) > fields.limit:
            raise InputError(f"prefill: committed has {len(fields.committed)} tokens where limit is {fields.limit}")
        if any(token >= self._vocabulary for token in fields.committed):
            raise InputError(f"prefill: committed has a token that is not below {self._vocabulary}")

    async def _opened(
        self, asked: _Asked, clock: Clock, earlier: asyncio.Future[Any] | None
    ) -> tuple[Session, list[int]]:
        """A session whose row holds the prompt and what was committed; and the tokens that are new.

        `earlier` is the same session's opening that is under way: this one takes its place.
        """
        fields, client, began_ms = asked.fields, asked.client, loop_ms()
        sampling = SamplingParameters(**fields.sampling.model_dump())
        if earlier is not None:
            await asyncio.wait([earlier])
        await self._forget(fields.session)
        most = self.limits.picture_pixels
        request = await self.scheduler.alone(
            "prepare", 1, lambda: prepared(self.session, fields, asked.message, clock, most), client
        )
        session = Session(
            fields.session, self.sessions.row(fields.session, loop_ms(), client), sampling, fields.rule, request.limit,
            request.length, list(fields.committed), working=1, client=client,
        )  # fmt: skip
        self.sessions.open(session, loop_ms())
        async with session.turn:
            try:
                for kind, count, work in prefilled(self.session, self.rows, session.row, request, clock):
                    logits = await self.scheduler.alone(kind, count, work, client)
                clock.modules_ms["queue"] = max(loop_ms() - began_ms - sum(clock.modules_ms.values()), 0.0)
                return session, await self._begun(session, logits)
            except BaseException:
                self.sessions.close(session.name)
                raise
            finally:
                session.working -= 1
                session.used = loop_ms()

    async def _begun(self, session: Session, logits: np.ndarray) -> list[int]:
        """The first token, or, where there are some, all but the last of them in the row; what is new."""
        if not session.committed:
            token = choose(logits, 0, session.sampling, self._vocabulary)
            return session.committed[: session.commit([token], self._stops)]
        if len(session.committed) > 1:
            await self._step(session, np.asarray(session.committed[:-1], np.int64), lambda logits: None)
        if len(session.committed) >= session.limit:
            session.finish = "length"
        return []

    async def _forget(self, name: str) -> bool:
        """Close a session when what it does now is done."""
        try:
            session = self.sessions.find(name)
            async with session.turn:
                self.sessions.check(session)
                return self.sessions.close(name)
        except SessionLost:
            return False

    async def _verify(self, fields: c.Verify, message: Message) -> AsyncIterator[Message]:
        began_ms = loop_ms()
        if c.DRAFTS not in message.tensors:
            raise InputError(f"verify: {c.DRAFTS} is missing: send the drafted tokens")
        drafts = message.tensors[c.DRAFTS].tolist()
        if len(drafts) > c.MOST_DRAFTS or any(not 0 <= draft < self._vocabulary for draft in drafts):
            raise InputError(f"verify: at most {c.MOST_DRAFTS} drafts, each a token below {self._vocabulary}")
        end = self._end(fields.deadline_ms)
        with self.sessions.asking(fields.session):
            session = await self._within(self._found(fields.session, fields.base, fields.prefix), end)
            probs = message.tensors.get(c.DRAFT_PROBS)
            if session.rule == "reject" and drafts:
                self._check_probabilities(probs, len(drafts))
            reply, tokens = await self._within(self._round(session, fields, drafts, probs), end)
        rests = fields.rest and not reply.stale and reply.accepted < reply.drafted and reply.finish is None
        reply = reply.model_copy(update={"verify_ms": loop_ms() - began_ms})
        yield c.write("judged" if rests else "verified", reply, tokens)
        if rests:
            told = reply.base + len(tokens[c.TOKENS])
            async for more in self._stream(session, told, told + fields.rest, end, until_asked=True):
                yield more

    def _check_probabilities(self, probs: np.ndarray | None, drafts: int) -> None:
        if probs is None or probs.shape != (drafts, self._vocabulary):
            raise InputError(f"verify: rule reject needs {c.DRAFT_PROBS} [{drafts}, {self._vocabulary}]")
        if not ((probs >= 0).all() and (np.abs(probs.sum(1, dtype=np.float64) - 1) < SUM_ERROR).all()):
            raise InputError(f"verify: {c.DRAFT_PROBS} has rows that are no probabilities: send what was drawn from")

    async def _round(
        self, session: Session, fields: c.Verify, drafts: list[int], probs: np.ndarray | None
    ) -> tuple[c.Verified, dict[str, np.ndarray]]:
        async with session.turn:
            self.sessions.check(session)
            known = session.committed[fields.base :]
            agreed = _agreement(known, drafts)
            stale = agreed < min(len(known), len(drafts))
            accepted = agreed
            if not stale and len(drafts) >= len(known) and session.finish is None:
                session.judged += 1
                room = session.limit - len(session.committed)
                new = drafts[len(known) :][:room]
                tail = None if probs is None else probs[len(known) :]
                accepted += await self._judged(session, new, tail)
                for _ in range(fields.burst):
                    if session.finish is None:
                        await self._judged(session, [], None)
            tokens = session.committed[fields.base :]
            reply = c.Verified(
                session=session.name, round=fields.round, base=fields.base, drafted=len(drafts), accepted=accepted,
                stale=stale, finish=session.finish,
            )  # fmt: skip
            return reply, {c.TOKENS: np.asarray(tokens, np.int64)}

    async def _judged(self, session: Session, drafts: list[int], probs: np.ndarray | None) -> int:
        """Verify drafts behind what is committed, commit, and put the row back to it; how many drafts were kept."""
        base = len(session.committed)
        held = session.prompt_tokens + base - 1

        def judge(logits: np.ndarray) -> int:
            committed = 0
            try:
                if session.rule == "reject" and probs is not None and drafts:
                    verdict = rejection(logits, drafts, probs, base, session.sampling, self._vocabulary)
                else:
                    verdict = same_token(logits, drafts, base, session.sampling, self._vocabulary)
                committed = session.commit([*drafts[: verdict.accepted], verdict.token], self._stops)
            finally:
                self.rows.rollback(session.row, held + committed)
            return verdict.accepted

        ids = np.asarray([session.committed[-1], *drafts], np.int64)
        return await self._step(session, ids, judge)

    async def _step(self, session: Session, ids: np.ndarray, judge: Callable[[np.ndarray], T]) -> T:
        session.working += 1
        try:
            return await self.scheduler.step(session.row, ids, judge)
        finally:
            session.working -= 1
            session.used = loop_ms()

    async def _decode(self, fields: c.Decode, message: Message) -> AsyncIterator[Message]:
        end = self._end(fields.deadline_ms)
        session = await self._within(self._found(fields.session, fields.base, fields.prefix), end)
        async for reply in self._stream(session, fields.base, fields.base + fields.count, end):
            yield reply

    async def _stream(
        self, session: Session, told: int, stop: int, end: float | None, until_asked: bool = False
    ) -> AsyncIterator[Message]:
        """The tokens from `told` up to `stop`: what is committed already, and what is decoded for it.

        `until_asked`: not beyond the next round whose drafts are judged.
        """
        judged = session.judged
        while told < stop:
            while told < min(len(session.committed), stop):
                token = c.TokenIs(session=session.name, position=told, id=session.committed[told])
                told += 1
                yield c.write("token", token)
            if until_asked:
                await self.sessions.unasked(session.name)
            if session.finish is not None or (until_asked and session.judged != judged):
                break
            if told < stop:
                await self._within(self._one(session, told), end)
        done = c.Done(session=session.name, known=len(session.committed), finish=session.ended(told))
        yield c.write("done", done)

    async def _one(self, session: Session, told: int) -> None:
        """Decode a token, unless another request did meanwhile."""
        async with session.turn:
            self.sessions.check(session)
            if session.finish is None and len(session.committed) <= told:
                await self._judged(session, [], None)

    async def _close(self, fields: c.Close, message: Message) -> AsyncIterator[Message]:
        await self._until_open(fields.session)
        yield c.write("closed", c.Closed(session=fields.session, known=await self._forget(fields.session)))

    async def _until_open(self, name: str) -> None:
        while name in self._openings:
            await asyncio.wait([self._openings[name]])

    async def _found(self, name: str, base: int, prefix: str) -> Session:
        """The session, as soon as it is open, where it committed what the client thinks it did."""
        await self._until_open(name)
        session = self.sessions.find(name)
        session.used = loop_ms()
        if not session.agrees(base, prefix):
            raise SessionLost(
                f"session {name!r}: its first {base} tokens here are others than the client's: open it again with what "
                "was committed"
            )
        return session

    @staticmethod
    def _end(deadline_ms: int | None) -> float | None:
        return None if deadline_ms is None else asyncio.get_running_loop().time() + deadline_ms / 1e3

    async def _within(self, work: Awaitable[T], end: float | None) -> T:
        """What `work` gives; it goes on and leaves its session whole when the deadline or the client ends the request.

        Raises:
            TimeoutError: the deadline came first.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        async with asyncio.timeout_at(end):
            return await asyncio.shield(task)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._work.discard(task)
        for name in [name for name, opening in self._openings.items() if opening is task]:
            del self._openings[name]
        if not task.cancelled():
            task.exception()  # told to whoever waited; nobody may be left


def _agreement(known: list[int], drafts: list[int]) -> int:
    """How many of the first tokens are the same in both."""
    pairs = enumerate(zip(known, drafts, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(known), len(drafts)))
