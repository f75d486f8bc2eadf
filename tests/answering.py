"""Messages of the contract, and a handler that keeps it without a model: token p is the prompt's length plus p."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from msao_compile.errors import MsaoError, SessionLost
from msao_compile.runtime.wire import contract
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.contract import DRAFTS, REQUESTS, TOKENS, fault, prefix_hash, read, write
from msao_compile.runtime.wire.message import Message

HASH = "ab" * 32
INPUTS = {"pixel_values": ("float32", 2), "flags": ("bool", 1), "half": ("float16", 3)}


@dataclass
class Held:
    """What one session committed; a prompt `0.5 ...` takes half a second for each token."""

    first: int
    token_s: float
    committed: list[int] = field(default_factory=list)

    def token(self, position: int) -> int:
        return self.first + position


@dataclass
class Answering:
    """`handle` is the handler. What it counts, `hello` tells: sessions as `limits.sessions`, and as `kv_capacity` how
    many requests were closed early.
    """

    sessions: dict[str, Held] = field(default_factory=dict)
    cancelled: int = 0

    async def handle(self, message: Message, client: str = "") -> AsyncIterator[Message]:
        ended = False
        try:
            fields = read(message, REQUESTS)
            async for reply in getattr(self, f"_{message.kind}")(fields, message):
                yield reply
            ended = True
        except MsaoError as error:
            ended = True
            yield fault(error)
        finally:
            self.cancelled += not ended

    async def _hello(self, fields: contract.Hello, message: Message) -> AsyncIterator[Message]:
        limits = contract.Limits(request_bytes=1 << 20, picture_pixels=1, sessions=len(self.sessions), draft_tokens=8)
        welcome = contract.Welcome(
            contract=contract.CONTRACT, model="m", modules={"decoder": HASH}, tokenizer=HASH, vocab_size=9,
            kv_layout="bhsd/v1", kv_capacity=self.cancelled, rules=("greedy",), limits=limits,
        )  # fmt: skip
        yield write("welcome", welcome)

    async def _prefill(self, fields: contract.Prefill, message: Message) -> AsyncIterator[Message]:
        size = sum(int(value.astype(np.int64).sum()) for value in message.tensors.values())
        slow = fields.prompt.split()[0] if fields.prompt[:2] == "0." else 0
        held = Held(len(fields.prompt) + size, float(slow), list(fields.committed))
        self.sessions[fields.session] = held
        new = [] if fields.stream else [held.token(len(held.committed))]
        ready = contract.Ready(
            limit=8, session=fields.session, base=len(held.committed), prompt_tokens=held.first, modules_ms={}
        )
        held.committed += new
        yield write("ready", ready, {TOKENS: np.array(new, np.int64)})
        if fields.stream:
            async for reply in self._tokens(fields.session, fields.stream):
                yield reply

    async def _verify(self, fields: contract.Verify, message: Message) -> AsyncIterator[Message]:
        held = self._held(fields.session)
        if fields.prefix != prefix_hash(held.committed[: fields.base]):
            raise SessionLost("another prefix")
        drafts = message.tensors.get(contract.DRAFTS, np.zeros(0, np.int64)).tolist()
        right = [held.token(fields.base + place) for place in range(len(drafts) + 1)]
        kept = next((at for at, (one, two) in enumerate(zip(drafts, right)) if one != two), len(drafts))
        held.committed[fields.base :] = right[: kept + 1]
        told = contract.Verified(
            session=fields.session, round=fields.round, base=fields.base, drafted=len(drafts), accepted=kept
        )
        yield write("verified", told, {TOKENS: np.array(right[: kept + 1], np.int64)})

    async def _decode(self, fields: contract.Decode, message: Message) -> AsyncIterator[Message]:
        async for reply in self._tokens(fields.session, fields.count):
            yield reply

    async def _close(self, fields: contract.Close, message: Message) -> AsyncIterator[Message]:
        known = self.sessions.pop(fields.session, None) is not None
        yield write("closed", contract.Closed(session=fields.session, known=known))

    async def _tokens(self, session: str, count: int) -> AsyncIterator[Message]:
        held = self._held(session)
        for _ in range(count):
            await asyncio.sleep(held.token_s)
            position = len(held.committed)
            held.committed.append(held.token(position))
            yield write("token", contract.TokenIs(session=session, position=position, id=held.committed[-1]))
        yield write("done", contract.Done(session=session, known=len(held.committed)))

    def _held(self, session: str) -> Held:
        if session not in self.sessions:
            raise SessionLost(f"session {session} is not known")
        return self.sessions[session]


def prefill(session: str, **more: object) -> Message:
    fields = {"session": session, "form": "prompt", "modules": {"decoder": HASH}, "tokenizer": HASH, "limit": 50}
    tensors = more.pop("tensors", {})
    return Message("prefill", {**fields, "prompt": "four", **more}, tensors)


def verify(session: str, committed: list[int], drafts: list[int], **more: object) -> Message:
    fields = {"session": session, "round": 1, "base": len(committed), "prefix": prefix_hash(committed), **more}
    return Message("verify", fields, {DRAFTS: np.array(drafts, np.int64)})


def decode(session: str, count: int, **more: object) -> Message:
    return Message("decode", {"session": session, "base": 0, "prefix": HASH, "count": count, **more})


async def begun(link: Link, message: Message) -> asyncio.Task[list[Message]]:
    """A request whose first reply is here; the task gives all of them."""
    replies = link.call(message, Traffic())
    first = await anext(replies)

    async def whole() -> list[Message]:
        return [first, *[reply async for reply in replies]]

    return asyncio.create_task(whole())


async def said(link: Link, message: Message, traffic: Traffic | None = None) -> list[Message]:
    return [reply async for reply in link.call(message, traffic or Traffic())]
