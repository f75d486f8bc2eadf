"""KServe v2 over HTTP, and `/metrics`: `infer` for one reply, `infer_stream` for a chunked row of frames."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from msao_compile.errors import InputError, Refused
from msao_compile.runtime.serve.cloud.desk import Desk, only_reply
from msao_compile.runtime.serve.cloud.logs import ABOUT
from msao_compile.runtime.serve.cloud.metrics import Metrics
from msao_compile.runtime.serve.cloud.security import Tokens
from msao_compile.runtime.serve.cloud.served import (
    EXTENSIONS,
    NAME,
    Tensor,
    input_tensors,
    output_tensors,
    server_version,
)
from msao_compile.runtime.wire.contract import LAST
from msao_compile.runtime.wire.kserve.json_form import HEADER_LENGTH, decode_request, encode_frame, encode_reply
from msao_compile.runtime.wire.kserve.parts import checked_id
from msao_compile.runtime.wire.message import Message

log = logging.getLogger("msao_compile.serve")
STATUS = {
    "bad_request": 400,
    "unauthenticated": 401,
    "unknown_session": 404,
    "mismatch": 409,
    "busy": 503,
    "unavailable": 503,
    "deadline": 504,
}
"""HTTP status of an `error` that is the only reply; any other is 500."""
Endpoint = Callable[[Request], Awaitable[Response]]


def http_app(desk: Desk, tokens: Tokens, metrics: Metrics) -> Starlette:
    """The application; health asks for no token, everything else does where there are tokens."""
    cloud = _Endpoints(desk, metrics)
    locked = functools.partial(_locked, tokens)
    model = "/v2/models/{name}"
    return Starlette(
        routes=[
            Route("/v2/health/live", cloud.live),
            Route("/v2/health/ready", cloud.ready),
            Route("/v2", locked(cloud.server)),
            Route("/v2/repository/index", locked(cloud.index), methods=["POST"]),
            Route(model, locked(cloud.model)),
            Route(f"{model}/ready", locked(cloud.model_ready)),
            Route(f"{model}/infer", locked(cloud.infer), methods=["POST"]),
            Route(f"{model}/infer_stream", locked(cloud.infer_stream), methods=["POST"]),
            Route("/metrics", locked(cloud.metrics)),
        ],
        exception_handlers={404: _not_there, 405: _not_there, ClientDisconnect: _gone, _TooLarge: _too_large},
    )


class _TooLarge(Exception):
    """A body above the bound, found before all of it was read."""


class _Endpoints:
    def __init__(self, desk: Desk, metrics: Metrics) -> None:
        self._desk = desk
        self._metrics = metrics

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._desk.open else 503)

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": NAME, "version": server_version(), "extensions": EXTENSIONS})

    async def index(self, request: Request) -> Response:
        state = "READY" if self._desk.open else "UNAVAILABLE"
        return JSONResponse([{"name": self._desk.served.name, "version": "1", "state": state}])

    async def model(self, request: Request) -> Response:
        served = self._desk.served
        if request.path_params["name"] != served.name:
            return _refusal(404, f"no such model is served here: ask for {served.name!r}")
        inputs, outputs = _described(input_tensors(served.inputs)), _described(output_tensors())
        told = {"name": served.name, "versions": ["1"], "platform": NAME, "inputs": inputs, "outputs": outputs}
        return JSONResponse(told)

    async def model_ready(self, request: Request) -> Response:
        ready = self._desk.open and request.path_params["name"] == self._desk.served.name
        return Response(status_code=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def infer(self, request: Request) -> Response:
        arrived = await _Arrived.read(self._desk, request)
        async with aclosing(arrived.answers()) as answers:
            reply = await only_reply(answers)
        header, rest = encode_reply(reply, self._desk.served.name, arrived.id, 0, last=True)
        status = STATUS.get(str(reply.fields.get("code")), 500) if reply.kind == "error" else 200
        self._metrics.sent(len(header) + len(rest))
        headers = {HEADER_LENGTH: str(len(header))}
        return Response(header + rest, status, headers, media_type="application/octet-stream")

    async def infer_stream(self, request: Request) -> Response:
        return _Frames(self._desk, await _Arrived.read(self._desk, request))


class _Arrived:
    """The body of a request, read within the bound; what it says is read when the desk asks."""

    def __init__(self, desk: Desk, request: Request, body: bytes) -> None:
        self.id = ""
        self._desk = desk
        self._model = request.path_params["name"]
        self._body = body
        self._header_length = request.headers.get(HEADER_LENGTH)
        self._client = request.state.client

    @classmethod
    async def read(cls, desk: Desk, request: Request) -> _Arrived:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > desk.bounds.request_bytes:
                raise _TooLarge
            chunks.append(chunk)
        return cls(desk, request, b"".join(chunks))

    def answers(self) -> Any:
        return self._desk.answers(self.id, len(self._body), self._message, self._client)

    def _message(self) -> Message:
        self._desk.served.check_name(self._model)
        length = self._header_length
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
            raise InputError(f"{HEADER_LENGTH} is {length[:40]!r}: give a number of bytes")
        self.id, message = decode_request(self._body, None if length is None else int(length))
        checked_id(self.id)
        return message


class _Frames(Response):
    """Replies as frames, while it listens for a client that goes away: that cancels the request at once."""

    def __init__(self, desk: Desk, arrived: _Arrived) -> None:
        super().__init__(media_type="application/octet-stream")
        del self.headers["content-length"]
        self._desk = desk
        self._arrived = arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, leaving = asyncio.create_task(self._send(send)), asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = sending.done()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if ended:
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        name, index, last = self._desk.served.name, 0, False
        async with aclosing(self._arrived.answers()) as replies:
            async for reply in replies:
                last = reply.kind in LAST
                await self._frame(send, encode_frame(reply, name, self._arrived.id, index, last))
                index += 1
        if not last:
            await self._frame(send, encode_frame(None, name, self._arrived.id, index, last=True))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frame(self, send: Send, frame: bytes) -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        self._desk.metrics.sent(len(frame))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _locked(tokens: Tokens, endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def checked(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        try:
            request.state.client = tokens.check(request.headers.get("authorization")) or peer
        except Refused as error:
            log.warning("a client without a right token", extra={ABOUT: {"peer": peer}})
            return _refusal(401, str(error), {"WWW-Authenticate": "Bearer"})
        return await endpoint(request)

    return checked


def _refusal(status: int, said: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": said}, status, headers)


async def _not_there(request: Request, error: Exception) -> Response:
    return _refusal(getattr(error, "status_code", 404), f"{request.method} {request.url.path[:80]} is not served here")


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _too_large(request: Request, error: Exception) -> Response:
    return _refusal(413, "the request is larger than this server takes", {"Connection": "close"})


def _described(tensors: list[Tensor]) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in tensors]
