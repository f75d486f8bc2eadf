"""`POST /v1/chat/completions`: from a body to an answer or a stream of it, with every wait bounded."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from msao_compile.runtime.answer import Answer, Piece
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.account import Account, Metrics
from msao_compile.runtime.serve.edge.content import Sources
from msao_compile.runtime.serve.edge.errors import GONE, Fault, Refusal, encode
from msao_compile.runtime.serve.edge.gate import event
from msao_compile.runtime.serve.edge.lane import Drawn
from msao_compile.runtime.serve.edge.limits import Door, Limits
from msao_compile.runtime.serve.edge.offers import Choice, Offers
from msao_compile.runtime.serve.edge.replies import Reply
from msao_compile.runtime.serve.edge.schema import ChatRequest, read_request

Result = TypeVar("Result")
STALLS_S = 2.0
"""So long after its deadline a stream whose client reads nothing is cut; one that is read is told of the deadline."""


@dataclass(frozen=True)
class Service:
    """What all requests of one server share."""

    runtime: Runtime
    offers: Offers
    sources: Sources
    limits: Limits
    door: Door
    metrics: Metrics


@dataclass
class Job:
    """One chat request from its body to its last token."""

    service: Service
    account: Account
    held: AsyncExitStack
    ends_at: float
    reply: Reply
    choice: Choice
    drawn: Drawn[Piece]

    @classmethod
    async def begin(cls, service: Service, request: Request, held: AsyncExitStack) -> tuple[Job, ChatRequest]:
        """Read the request; what is `held` is given back when the job ends.

        Raises:
            Refusal: it is too large, too late or wrong.
        """
        account: Account = request.scope["state"]["account"]
        ends_at = asyncio.get_running_loop().time() + service.limits.deadline_s
        body = await before(ends_at, read_body(request, service.limits.body_bytes))
        asked, messages, pictures = await asyncio.to_thread(_understood, body, service.sources)
        account.said["model"] = asked.model if asked.model in service.offers.names else None
        choice = service.offers.choose(asked.model, asked.route)
        pieces = cast(Generator[Piece], service.runtime.stream(messages, pictures, **_options(asked, choice)))
        drawn = Drawn(choice.lane, pieces)
        held.push_async_callback(drawn.close)
        reply = Reply(f"chatcmpl-{account.request_id}", asked.model, int(time.time()), choice.reason)
        return cls(service, account, held, ends_at, reply, choice, drawn), asked

    async def draw(self) -> Piece:
        """The next piece.

        Raises:
            Refusal: it is too late. MsaoError: as `Runtime.stream`.
        """
        piece = await before(self.ends_at, self.drawn.draw())
        if piece is None:
            raise Refusal(Fault(500, "the answer ended without its account: try again", code="generation_failed"))
        if piece.answer is not None:
            self._finished(piece.answer)
        return piece

    def _finished(self, answer: Answer) -> None:
        self.account.answered(answer)
        self.service.metrics.answered(self.reply.model, answer)
        self.service.metrics.whole.observe(self.account.seconds)


async def completions(request: Request) -> Response:
    """Answer one chat request; a client that leaves ends it at the next token."""
    service: Service = request.app.state.service
    _check_type(request)
    async with AsyncExitStack() as held:
        held.enter_context(service.door.entered())
        job, asked = await Job.begin(service, request, held)
        if asked.stream:
            first = await while_connected(request, _first(job))
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(_events(job, first, usage), job.ends_at + STALLS_S, held.pop_all().aclose)
        answer = await while_connected(request, _whole(job))
        return Response(encode(job.reply.whole(answer)), media_type="application/json")


class EventStream(StreamingResponse):
    """A stream of server-sent events that gives back what it holds, even if it failed or never began.

    A client that takes nothing any more would hold its place for ever: `ends_at` bounds the sending, too.
    """

    def __init__(self, events: AsyncIterator[bytes], ends_at: float, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._ends_at, self._close = ends_at, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            Refusal: the client does not read it.
        """
        try:
            async with asyncio.timeout_at(self._ends_at):
                await super().__call__(scope, receive, send)
        except TimeoutError as error:
            raise Refusal(Fault(GONE, "the client did not read its stream", code="client_stalled")) from error
        finally:
            await self._close()


async def _first(job: Job) -> Piece:
    await before(job.ends_at, job.drawn.start())
    return await job.draw()


async def _whole(job: Job) -> Answer:
    piece = await _first(job)
    while piece.answer is None:
        piece = await job.draw()
    return piece.answer


async def _events(job: Job, piece: Piece, usage: bool) -> AsyncIterator[bytes]:
    """The first piece was drawn before the reply began, so that what refuses a request has its own status."""
    reply = job.reply
    yield event(reply.chunk({"role": "assistant", "content": ""}, usage))
    while True:
        if piece.text:
            yield event(reply.chunk({"content": piece.text}, usage))
        if piece.answer is not None:
            break
        piece = await job.draw()
    yield event(reply.last(piece.answer, usage))
    if usage:
        yield event(reply.usage(piece.answer))
    yield b"data: [DONE]\n\n"


def _understood(body: bytes, sources: Sources) -> tuple[ChatRequest, list[dict[str, Any]], list[bytes]]:
    asked = read_request(body)
    return asked, *sources.unfold(asked.messages)


def _options(asked: ChatRequest, choice: Choice) -> dict[str, Any]:
    drawn_anew = asked.seed is None and asked.temperature > 0
    return {
        "max_new_tokens": asked.limit,
        "route": choice.route,
        "task": choice.task,
        "stop": asked.stop or (),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "seed": secrets.randbelow(2**31) if drawn_anew else asked.seed or 0,
    }


def _check_type(request: Request) -> None:
    """JSON only: a form or plain text could be sent by any web page without the browser asking first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        said = "the body is not sent as JSON: set Content-Type: application/json"
        raise Refusal(Fault(415, said, code="unsupported_media_type"))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(Fault(415, "the body is compressed: send it as it is", code="unsupported_media_type"))


async def read_body(request: Request, most: int) -> bytes:
    """The body, refused as soon as it is known to be too large.

    Raises:
        Refusal: 413.
    """
    said = f"the body has more than {most} bytes: send smaller or fewer pictures"
    too_large = Refusal(Fault(413, said, code="request_too_large"))
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def before(ends_at: float, work: Awaitable[Result]) -> Result:
    """What `work` gives, if that is before a time of the event loop.

    Raises:
        Refusal: 504.
    """
    try:
        async with asyncio.timeout_at(ends_at):
            return await work
    except TimeoutError as error:
        said = "the request took longer than this server's deadline: ask for fewer tokens, or try again later"
        raise Refusal(Fault(504, said, code="deadline_exceeded")) from error


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled when the client leaves, which only `receive` tells.

    Raises:
        Refusal: the client left.
    """
    worker, watcher = asyncio.create_task(work), asyncio.create_task(_leave(request))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise Refusal(Fault(GONE, "the client left", code="client_left"))
        return await worker
    finally:
        for task in (worker, watcher):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})


async def _leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
