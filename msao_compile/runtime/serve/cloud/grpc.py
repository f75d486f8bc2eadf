"""KServe v2 over gRPC: the services that a cloud offers, each request of a stream a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from msao_compile.errors import InputError, Refused
from msao_compile.runtime.serve.cloud.desk import Desk, only_reply
from msao_compile.runtime.serve.cloud.security import Tokens, host_of
from msao_compile.runtime.serve.cloud.served import (
    EXTENSIONS,
    NAME,
    Tensor,
    input_tensors,
    output_tensors,
    server_version,
)
from msao_compile.runtime.wire.contract import LAST
from msao_compile.runtime.wire.kserve.codec import decode_request, encode_reply, parameters_of
from msao_compile.runtime.wire.kserve.parts import CANCEL, CANCELS, MOST_ID, OPERATION, checked_id
from msao_compile.runtime.wire.message import Message

log = logging.getLogger("msao_compile.serve")
WAITING_REPLIES = 64
"""So many replies of one stream wait to be sent; then handlers wait for a client that reads slowly."""


class CloudServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """GRPCInferenceService for the one model of a desk."""

    def __init__(self, desk: Desk, tokens: Tokens) -> None:
        self._desk = desk
        self._tokens = tokens
        self._streams = 0

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        """Requests in any number, their replies as they come; a cancelled call cancels all of its requests."""
        client = await self._let_in(context)
        if self._streams >= self._desk.bounds.connections:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many connections")
        self._streams += 1
        stream = _Stream(self._desk, context, client)
        try:
            while (request := await context.read()) is not aio.EOF:
                stream.take(request)
            await stream.finish()
        finally:
            self._streams -= 1
            await stream.end()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """A request that has one reply; one with more is told so."""
        client = await self._let_in(context)
        async with aclosing(_answers(self._desk, request, client)) as answers:
            reply = await only_reply(answers)
        response = encode_reply(reply, self._desk.served.name, request.id, 0, last=True)
        self._desk.metrics.sent(response.ByteSize())
        return response

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether the process lives; asks for no token."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether requests are taken; asks for no token."""
        return service_pb2.ServerReadyResponse(ready=self._desk.open)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether this model is served and requests are taken."""
        await self._let_in(context)
        return service_pb2.ModelReadyResponse(ready=self._desk.open and request.name == self._desk.served.name)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions."""
        await self._let_in(context)
        return service_pb2.ServerMetadataResponse(name=NAME, version=server_version(), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """The model's arrays."""
        await self._let_in(context)
        try:
            self._desk.served.check_name(request.name)
        except InputError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        served = self._desk.served
        return service_pb2.ModelMetadataResponse(
            name=served.name,
            versions=("1",),
            platform=NAME,
            inputs=_described(input_tensors(served.inputs)),
            outputs=_described(output_tensors()),
        )

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """The one model."""
        await self._let_in(context)
        index = service_pb2.RepositoryIndexResponse()
        if self._desk.open or not request.ready:
            index.models.add(
                name=self._desk.served.name, version="1", state="READY" if self._desk.open else "UNAVAILABLE"
            )
        return index

    async def _let_in(self, context: Any) -> str:
        """Which client this is: by its token where several are known, else by the machine it calls from."""
        shown = {key.lower(): value for key, value in context.invocation_metadata() or ()}
        try:
            return self._tokens.check(shown.get("authorization")) or host_of(context.peer())
        except Refused as error:
            log.warning("a client without a right token", extra={"about": {"peer": context.peer()}})
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            raise  # abort did


class _Stream:
    """One ModelStreamInfer call: its running requests, and one task that sends."""

    def __init__(self, desk: Desk, context: Any, client: str) -> None:
        self._desk = desk
        self._context = context
        self._client = client
        self._running: set[asyncio.Task[None]] = set()
        self._by_id: dict[str, asyncio.Task[None]] = {}
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue(WAITING_REPLIES)
        self._sender = asyncio.create_task(self._send())

    def take(self, request: Any) -> None:
        """Start a request, or cancel one."""
        told = parameters_of(request)
        if told.get(OPERATION) == CANCEL:
            if task := self._by_id.get(str(told.get(CANCELS))):
                task.cancel()
            return
        task = asyncio.create_task(self._answer(request, twice=request.id in self._by_id))
        self._running.add(task)
        self._by_id.setdefault(request.id, task)
        task.add_done_callback(partial(self._ended, request.id))

    async def finish(self) -> None:
        """The client sends nothing more: answer what runs."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._outgoing.join()

    async def end(self) -> None:
        """Cancel what still runs."""
        tasks = [*self._running, self._sender]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, request_id: str, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._by_id.get(request_id) is task:
            del self._by_id[request_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a reply could not be sent", exc_info=error, extra={"about": {"request": request_id}})

    async def _answer(self, request: Any, twice: bool) -> None:
        name, index, last = self._desk.served.name, 0, False
        async with aclosing(_answers(self._desk, request, self._client, twice)) as replies:
            async for reply in replies:
                last = reply.kind in LAST
                await self._outgoing.put(encode_reply(reply, name, request.id, index, last))
                index += 1
        if not last:
            await self._outgoing.put(encode_reply(None, name, request.id, index, last=True))

    async def _send(self) -> None:
        """A task of its own: gRPC takes one write at a time, and a request may be cancelled while it waits."""
        while True:
            response = await self._outgoing.get()
            try:
                await self._context.write(service_pb2.ModelStreamInferResponse(infer_response=response))
                self._desk.metrics.sent(response.ByteSize())
            finally:
                self._outgoing.task_done()


def _answers(desk: Desk, request: Any, client: str, twice: bool = False) -> AsyncGenerator[Message, None]:
    def arrive() -> Message:
        if twice:
            raise InputError(f"a request of id {request.id[:40]!r} runs already on this stream: give it another id")
        checked_id(request.id)
        desk.served.check_name(request.model_name)
        return decode_request(request)

    return desk.answers(request.id[:MOST_ID], request.ByteSize(), arrive, client)


def _described(tensors: list[Tensor]) -> list[Any]:
    kind = service_pb2.ModelMetadataResponse.TensorMetadata
    return [kind(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape) for tensor in tensors]
