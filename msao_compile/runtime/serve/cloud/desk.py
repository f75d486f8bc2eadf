"""Where requests of every transport arrive: admitted, bounded in time, counted, logged, and never left unanswered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Protocol

from msao_compile.errors import Busy, DeadlineExceeded, InputError, LinkDown, MsaoError
from msao_compile.runtime.serve.cloud.logs import ABOUT
from msao_compile.runtime.serve.cloud.served import Bounds, Served
from msao_compile.runtime.wire.contract import REQUESTS, Fault, fault, read, write
from msao_compile.runtime.wire.kserve.parts import check_arrays
from msao_compile.runtime.wire.message import Message

log = logging.getLogger("msao_compile.serve")


class Counts(Protocol):
    """What is told of requests; see `metrics.Metrics`."""

    def arrived(self, size_bytes: int) -> None: ...
    def sent(self, size_bytes: int) -> None: ...
    def ended(self, operation: str, outcome: str, seconds: float) -> None: ...


class Uncounted:
    """Counts nothing: for a server that has metrics of its own."""

    def arrived(self, size_bytes: int) -> None:
        """A request came."""

    def sent(self, size_bytes: int) -> None:
        """A reply went out."""

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """A request ended."""


class Desk:
    """Takes requests for one served model; `active` counts those that run, of all clients and of each."""

    def __init__(self, served: Served, bounds: Bounds, metrics: Counts) -> None:
        self.served = served
        self.bounds = bounds
        self.metrics = metrics
        self.active = 0
        self._of: Counter[str] = Counter()
        self.open = False
        """Whether requests are taken; what readiness tells."""
        self._idle = asyncio.Event()
        self._idle.set()

    async def answers(
        self, request_id: str, size_bytes: int, arrive: Callable[[], Message], client: str = ""
    ) -> AsyncGenerator[Message, None]:
        """The replies to one request, whatever happens; `arrive` reads it. Closing the iterator cancels the request."""
        started, about, outcome = time.perf_counter(), {"request": request_id, "client": client}, "cancelled"
        self._enter(size_bytes, client)
        try:
            try:
                message = self._admit(size_bytes, arrive, about)
                async with aclosing(self._within(message, client)) as replies:
                    async for reply in replies:
                        check_arrays(reply)
                        outcome = str(reply.fields.get("code")) if reply.kind == "error" else "ok"
                        yield reply
            except MsaoError as error:
                told = fault(error)
                outcome = told.fields["code"]
                yield told
            except Exception:
                outcome = "internal"
                log.exception("a request failed", extra={ABOUT: about})
                yield write("error", Fault(code="internal", message="the cloud failed; its log tells of this request"))
        finally:
            seconds = time.perf_counter() - started
            self._leave(client)
            self.metrics.ended(about.get("operation", "unknown"), outcome, seconds)
            log.info("%s", outcome, extra={ABOUT: {**about, "outcome": outcome, "ms": round(seconds * 1e3, 3)}})

    async def drained(self, within_s: float) -> bool:
        """Take no more requests and wait for those that run; whether all ended in time."""
        self.open = False
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _enter(self, size_bytes: int, client: str) -> None:
        self.active += 1
        self._of[client] += 1
        self._idle.clear()
        self.metrics.arrived(size_bytes)

    def _leave(self, client: str) -> None:
        self.active -= 1
        self._of[client] -= 1
        if not self._of[client]:
            del self._of[client]
        if self.active == 0:
            self._idle.set()

    def _admit(self, size_bytes: int, arrive: Callable[[], Message], about: dict[str, str]) -> Message:
        if not self.open:
            raise LinkDown("the server is starting or stopping: try another, or this one later")
        if self.active > self.bounds.requests:
            raise Busy(f"{self.bounds.requests} requests run already", self.bounds.retry_after_ms)
        if about["client"] and self._of[about["client"]] > self.bounds.client_requests:
            raise Busy(f"{self.bounds.client_requests} requests of this client run", self.bounds.retry_after_ms)
        if size_bytes > self.bounds.request_bytes:
            raise InputError(f"the request has {size_bytes} bytes where {self.bounds.request_bytes} are taken")
        message = arrive()
        about["operation"] = message.kind[:40]
        fields = read(message, REQUESTS)
        if session := getattr(fields, "session", None):
            about["session"] = session
        return message

    async def _within(self, message: Message, client: str) -> AsyncGenerator[Message, None]:
        """The handler's replies, until the request's time is over."""
        allowed = message.fields.get("deadline_ms")
        seconds = min(self.bounds.seconds, allowed / 1e3 if allowed else self.bounds.seconds)
        until = asyncio.get_running_loop().time() + seconds
        async with aclosing(self.served.handle(message, client)) as replies:  # type: ignore[type-var]
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        reply = await anext(replies, None)
                except TimeoutError as error:
                    raise DeadlineExceeded(f"{message.kind} took longer than {seconds * 1e3:.0f} ms") from error
                if reply is None:
                    return
                yield reply


async def only_reply(replies: AsyncIterator[Message]) -> Message:
    """The reply to a request over a call that carries one; an `error` where there is none, or another."""
    first = await anext(replies, None)
    if first is None or await anext(replies, None) is not None:
        return fault(InputError("this request has not one reply but several: send it over a stream"))
    return first
