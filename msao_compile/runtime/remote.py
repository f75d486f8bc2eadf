"""An answer that a cloud writes, seen from here: opened, followed, verified, and opened again when it was lost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from msao_compile.errors import Busy, DeadlineExceeded, LinkDown, RemoteError, SessionLost
from msao_compile.runtime.answer import Clock, Extent
from msao_compile.runtime.device import loop_ms
from msao_compile.runtime.link_state import LinkState
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.message import Message

AGAIN = (LinkDown, SessionLost, Busy, DeadlineExceeded)
"""What another try may mend."""
SMALL_BYTES = 4096
"""A message of so many bytes tells of the round trip and not of the rate."""


@dataclass(frozen=True)
class Patience:
    """How often a lost cloud is tried again without a token in between, and how long each wait is at least.

    The first wait is `wait_ms`, each next one twice as long, up to `longest_ms`. A round is given `stall_ms` in the
    cloud; a cloud that says nothing to a request for `silence_ms` counts as lost, and no wait is longer than that. An
    answer waits for its cloud for `quiet_ms` without a token at most, all tries together.
    """

    tries: int = 4
    wait_ms: float = 50.0
    longest_ms: float = 2000.0
    stall_ms: int = 10_000
    silence_ms: float = 30_000.0
    quiet_ms: float = 30_000.0

    async def again(self, error: RemoteError, tried: int, quiet: Quiet) -> None:
        """Wait before try number `tried` + 1, as long as the cloud said where it did.

        Raises:
            RemoteError: it was the last try, or the cloud said longer than is left of this answer's patience.
        """
        told_ms = error.retry_after_ms if isinstance(error, Busy) else 0
        left_ms = self.quiet_ms - quiet.spent_ms
        if tried >= self.tries or told_ms > self.silence_ms or told_ms >= left_ms:
            raise error
        own_ms = min(self.wait_ms * 2 ** min(tried - 1, 30), self.longest_ms, self.silence_ms)
        with quiet:
            await asyncio.sleep(min(max(told_ms, own_ms), left_ms) / 1e3)


class Quiet:
    """How long an answer has waited for its cloud since its last token: `with` it around each wait, also several.

    What passes while nothing is asked of the cloud does not count, such as a slow drafter's time, or a reader's.
    """

    def __init__(self) -> None:
        self._before_ms = self._since_ms = 0.0
        self._waits = 0

    @property
    def spent_ms(self) -> float:
        """Milliseconds so far."""
        return self._before_ms + (loop_ms() - self._since_ms if self._waits else 0.0)

    def broken(self) -> None:
        """A token came."""
        self._before_ms = 0.0
        if self._waits:
            self._since_ms = loop_ms()

    def __enter__(self) -> None:
        if not self._waits:
            self._since_ms = loop_ms()
        self._waits += 1

    def __exit__(self, *raised: object) -> None:
        self._before_ms = self.spent_ms if self._waits == 1 else self._before_ms
        self._waits -= 1


class RemoteSession:
    """One answer in a cloud. `committed` is all that the cloud said of it; it only grows.

    `opening` is a prefill message without session and committed tokens, which are filled in at each try. What its
    messages tell of the link goes into `state`.
    """

    def __init__(
        self,
        link: Link,
        opening: Message,
        clock: Clock,
        traffic: Traffic,
        patience: Patience,
        state: LinkState | None = None,
    ) -> None:
        self.link, self.opening, self.clock, self.traffic, self.patience = link, opening, clock, traffic, patience
        self.state = state or LinkState()
        self.quiet = Quiet()
        self.committed: list[int] = []
        self.finish: c.Finish | None = None
        self.name = ""
        self.grown = asyncio.Event()
        self.extent = Extent()
        self._open = False
        self.queue_ms = self.step_wait_ms = 0.0
        self.verify_ms = 0.0
        self.rounds = 0
        self.reopened = 0
        self._leaving: set[asyncio.Task[None]] = set()

    async def open(self, stream: int | None = 0, until_asked: bool = False) -> AsyncIterator[None]:
        """Open the session with what is committed; yields whenever more is, and ends where the stream does.

        `stream` None: the whole answer; 0: only the session. `until_asked`: no further than the first round.

        Raises:
            RemoteError, InputError: as `Link.call`.
        """
        self.leave()  # the one that was lost would keep its room until the cloud finds it silent
        self._open = False
        self.name = secrets.token_hex(8)
        fields = {**self.opening.fields, "session": self.name, "committed": self.committed, "stream": stream,
                  "until_asked": until_asked}  # fmt: skip
        began_ms, before, whole = loop_ms(), self.traffic.up, False
        async for message in self._heard(Message("prefill", fields, self.opening.tensors)):
            reply = c.read(message, c.REPLIES)
            whole = isinstance(reply, c.Done) or (isinstance(reply, c.Ready) and not stream)
            if isinstance(reply, c.Ready):
                self.queue_ms, self.step_wait_ms = reply.queue_ms, reply.step_wait_ms
                self._open = True
                self.extent.prompt_tokens, self.extent.limit = reply.prompt_tokens, reply.limit
                self._learn(loop_ms() - began_ms - reply.spent_ms, self.traffic.up - before)
                if self.clock.first is None:
                    self.clock.modules_ms |= {f"cloud/{name}": ms for name, ms in reply.modules_ms.items()}
                self.take(reply.base, _tokens(message), reply.finish)
            else:
                self._goes_on(reply)
            yield
        if not whole:
            raise LinkDown("the cloud ended an answer in the middle: it is opened again")

    async def tokens(self) -> AsyncIterator[int]:
        """The whole answer as the cloud decodes it, however often it has to be opened again.

        Raises:
            RemoteError, InputError: as `Link.call`, after the last try.
        """
        told, tried = 0, 0
        while self.finish is None:
            try:
                async for _ in self.open(None):
                    while told < len(self.committed):
                        yield self.committed[told]
                        told, tried = told + 1, 0
            except AGAIN as error:
                tried += 1
                await self.patience.again(error, tried, self.quiet)
                self.reopened += 1

    def verify(
        self, drafts: Sequence[int], probs: np.ndarray | None = None, burst: int = 0, rest: int = 0
    ) -> Coroutine[Any, Any, c.Verified]:
        """Have drafts verified that follow what is committed at this call; what comes back is committed.

        It takes until the cloud does not go on by itself any more, which it does for `rest` tokens at most.

        Raises:
            RemoteError, InputError: as `Link.call`.
        """
        self.rounds += 1
        base, prefix = len(self.committed), c.prefix_hash(self.committed)
        fields = c.Verify(
            session=self.name,
            round=self.rounds,
            base=base,
            prefix=prefix,
            burst=burst,
            rest=rest,
            deadline_ms=self.patience.stall_ms,
        )
        tensors = {c.DRAFTS: np.asarray(drafts, np.int64)}
        if probs is not None:
            tensors[c.DRAFT_PROBS] = probs
        return self._verified(c.write("verify", fields, tensors))

    async def decode(self, count: int) -> None:
        """Have the cloud go on without drafts, `count` tokens at most from what is committed now.

        Raises:
            RemoteError, InputError: as `Link.call`.
        """
        base, prefix = len(self.committed), c.prefix_hash(self.committed)
        asked = c.write("decode", c.Decode(session=self.name, base=base, prefix=prefix, count=count))
        whole = False
        async for message in self._heard(asked):
            whole = self._goes_on(c.read(message, c.REPLIES))
        if not whole:
            raise LinkDown("the cloud ended an answer in the middle: it is opened again")

    async def _heard(self, asked: Message, counts: bool = True) -> AsyncIterator[Message]:
        """Replies as they come, none of which is waited for for ever; a link that fails is remembered.

        `counts`: what this takes is a part of the answer's patience.
        """
        replies = self.link.call(asked, self.traffic)
        try:
            while True:
                with self.quiet if counts else nullcontext():
                    async with asyncio.timeout(self._silence_ms(counts) / 1e3):
                        reply = await anext(replies, None)
                if reply is None:
                    return
                yield reply
        except TimeoutError as error:
            self.state.failed(loop_ms())
            raise LinkDown(f"the cloud said nothing to a {asked.kind} for too long: try again later") from error
        except LinkDown:
            self.state.failed(loop_ms())
            raise
        finally:
            if isinstance(replies, AsyncGenerator):  # whoever leaves early cancels the request
                await replies.aclose()

    def _silence_ms(self, counts: bool) -> float:
        """How long the next reply is waited for."""
        patience = self.patience
        if not counts:
            return patience.silence_ms
        return min(patience.silence_ms, max(patience.quiet_ms - self.quiet.spent_ms, 0.0))

    def _learn(self, passed_ms: float, size_bytes: int) -> None:
        """What opening a session tells: a small message of the round trip, a large one of the rate."""
        if size_bytes <= SMALL_BYTES or not self.state.rtt.count:
            self.state.heard(loop_ms(), passed_ms)
        if size_bytes > SMALL_BYTES:
            self.state.sent(size_bytes, passed_ms - self.state.rtt.mean)

    async def _verified(self, asked: Message) -> c.Verified:
        began_ms, behind_prompt = loop_ms(), not self._open
        verdict, whole = None, False
        async for message in self._heard(asked):
            reply = c.read(message, c.REPLIES)
            if isinstance(reply, c.Verified) and reply.session == self.name:
                if not behind_prompt:  # else it waited for pictures that were still on their way
                    self.state.heard(loop_ms(), loop_ms() - began_ms - reply.verify_ms)
                self.verify_ms += reply.verify_ms
                verdict, whole = reply, message.kind == "verified"
                self.take(reply.base, _tokens(message), reply.finish)
            else:
                whole = self._goes_on(reply)
            if whole and verdict is not None:
                return verdict
        raise LinkDown("the cloud ended a round without a verdict: it is tried again")

    def _goes_on(self, reply: Any) -> bool:
        """Commit what the cloud decodes by itself; whether that was all."""
        if isinstance(reply, c.TokenIs):
            self.take(reply.position, [reply.id], None)
        elif isinstance(reply, c.Done):
            self.finish = reply.finish or self.finish
            self.grown.set()
        return isinstance(reply, c.Done)

    def take(self, base: int, tokens: Sequence[int], finish: c.Finish | None) -> None:
        """Commit what the cloud says stands from `base` on; what is known already has to be the same.

        Raises:
            RemoteError: it is another than what was committed before.
        """
        known = self.committed[base : base + len(tokens)]
        if base > len(self.committed) or list(tokens[: len(known)]) != known:
            raise RemoteError(f"the cloud changed its mind about what it had committed from token {base} on")
        if len(tokens) > len(known):
            self.quiet.broken()
        self.committed.extend(tokens[len(known) :])
        self.grown.set()
        if base + len(tokens) == len(self.committed):  # else it is older than what is known
            self.finish = finish or self.finish

    def leave(self) -> None:
        """Let the cloud forget it, without waiting for that; a cloud that cannot be reached will by itself."""
        if self.name and self.finish is None:
            leaving = asyncio.ensure_future(self._close(self.name))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _close(self, name: str) -> None:
        with suppress(RemoteError):
            async for _ in self._heard(c.write("close", c.Close(session=name)), counts=False):
                continue


def _tokens(message: Message) -> list[int]:
    if c.TOKENS not in message.tensors:
        raise RemoteError(f"the cloud's {message.kind} has no {c.TOKENS}: install the same msao-compile on both")
    found: list[int] = message.tensors[c.TOKENS].tolist()
    return found
