"""A link over gRPC: every request of a connection goes over one ModelStreamInfer stream, told apart by its id.

A stream that broke is opened again at the next call; gRPC waits between attempts to connect. What was sent on it is
never sent again: its fate is not known, so its caller gets LinkDown and decides.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from msao_compile.errors import InputError, LinkDown, MsaoError
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.contract import raise_fault
from msao_compile.runtime.wire.kserve.codec import decode_reply, encode_cancel, encode_request
from msao_compile.runtime.wire.kserve.options import LinkOptions, Patience
from msao_compile.runtime.wire.kserve.parts import FINAL, read_safely
from msao_compile.runtime.wire.kserve.translate import (
    failed_while_it_ran,
    grpc_error,
    refused_before_it_ran,
)
from msao_compile.runtime.wire.message import Message

log = logging.getLogger(__name__)


class GrpcLink:
    """A link to a cloud at `host:port`; use it in the event loop that made it."""

    def __init__(self, target: str, options: LinkOptions, tls: bool) -> None:
        self.options = options
        self.model = options.model or ""
        self._metadata = tuple(options.headers().items())
        self._channel = _channel(target, options, tls)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._stream: _Stream | None = None
        self._open = True
        self._name, self._count = secrets.token_hex(8), itertools.count()

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; as `base.Link.call`."""
        if not self._open:
            raise LinkDown("the link is closed: open another")
        request_id = f"{self._name}-{next(self._count)}"
        request = encode_request(message, self.model, request_id)
        size = request.ByteSize()
        if size > self.options.message_bytes:
            raise InputError(f"{message.kind} has {size} bytes where {self.options.message_bytes} may be sent")
        patience, stream = Patience(message, self.options), self._streaming()
        arriving, awaited, last = stream.send(request_id, request), 0, False
        traffic.up += size
        try:
            while not last:
                got = await patience.reply(arriving.get())
                response = _judged(got)
                traffic.down += response.ByteSize()
                reply = read_safely(decode_reply, response)
                last = reply.last
                if reply.message is None:
                    continue
                if reply.index < awaited:
                    log.debug("reply %d to request %s came twice: dropped", reply.index, request_id)
                    last = False
                    continue
                if reply.index > awaited:
                    raise LinkDown(f"reply {awaited} to a request was lost: {reply.index} came")
                awaited += 1
                raise_fault(reply.message)
                yield reply.message
        except MsaoError:
            last = last or not stream.alive
            raise
        finally:
            stream.forget(request_id, None if last else encode_cancel(self.model, request_id))

    async def close(self) -> None:
        """Give the connection back; further calls raise LinkDown."""
        self._open = False
        if self._stream is not None:
            self._stream.end()
        await self._channel.close()

    async def ask(self, method: str, request: Any) -> Any:
        """One plain call, such as ServerReady, within `connect_s`; raises as `call`."""
        try:
            return await getattr(self._stub, method)(
                request, timeout=self.options.connect_s, metadata=self._metadata or None
            )
        except aio.AioRpcError as error:
            raise grpc_error(error.code(), error.details() or "") from error

    async def ready(self) -> bool:
        """Whether the server takes requests; raises as `call`."""
        return bool((await self.ask("ServerReady", service_pb2.ServerReadyRequest())).ready)

    async def models(self) -> list[str]:
        """The names of the models that are served; raises as `call`."""
        told = await self.ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))
        return [entry.name for entry in told.models]

    def _streaming(self) -> _Stream:
        if self._stream is None or not self._stream.alive:
            self._stream = _Stream(self._stub.ModelStreamInfer(metadata=self._metadata or None))
        return self._stream


class _Stream:
    """One open ModelStreamInfer and who waits for what on it."""

    def __init__(self, call: Any) -> None:
        self.alive = True
        self._call = call
        self._waiting: dict[str, asyncio.Queue[Any]] = {}
        self._outgoing: asyncio.Queue[tuple[str | None, Any]] = asyncio.Queue()
        self._tasks = (asyncio.create_task(self._write()), asyncio.create_task(self._read()))

    def send(self, request_id: str, request: Any) -> asyncio.Queue[Any]:
        """Where the replies to the request will arrive."""
        self._waiting[request_id] = asyncio.Queue()
        self._outgoing.put_nowait((request_id, request))
        return self._waiting[request_id]

    def forget(self, request_id: str, cancel: Any | None) -> None:
        """Nobody waits any more; what comes is dropped, and `cancel` is sent where the request still runs."""
        self._waiting.pop(request_id, None)
        if cancel is not None and self.alive:
            self._outgoing.put_nowait((None, cancel))

    def end(self) -> None:
        """Close it; whoever waits gets LinkDown."""
        self._fail(LinkDown("the link was closed while a request ran"))
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    async def _write(self) -> None:
        """A task of its own: gRPC ends the whole stream when a writer is cancelled, and a caller may be."""
        while True:
            request_id, request = await self._outgoing.get()
            if request_id is not None and request_id not in self._waiting:
                continue
            try:
                await self._call.write(request)
            except (aio.AioRpcError, asyncio.InvalidStateError) as error:
                log.debug("the stream broke while a request was sent: %s", error)
                return  # the reader learns why

    async def _read(self) -> None:
        error: MsaoError = LinkDown("the cloud ended the connection")
        try:
            while (response := await self._call.read()) is not aio.EOF:
                self._give(response)
        except aio.AioRpcError as broken:
            error = grpc_error(broken.code(), broken.details() or "")
        finally:
            self._fail(error)
            self._tasks[0].cancel()

    def _give(self, response: Any) -> None:
        queue = self._waiting.get(response.infer_response.id)
        if queue is not None:
            queue.put_nowait(response)
        else:
            log.debug("a reply to request %r, which nobody waits for: dropped", response.infer_response.id)

    def _fail(self, error: MsaoError) -> None:
        self.alive = False
        for queue in self._waiting.values():
            queue.put_nowait(error)


def _judged(got: Any) -> Any:
    """The ModelInferResponse in what arrived.

    Raises:
        MsaoError: the stream broke, or the server itself refused the request.
    """
    if isinstance(got, MsaoError):
        raise copy.copy(got)  # several callers may get it, each with a traceback of its own
    if not got.error_message:
        return got.infer_response
    if FINAL in got.infer_response.parameters:
        raise failed_while_it_ran(got.error_message)
    raise refused_before_it_ran(got.error_message)


def _channel(target: str, options: LinkOptions, tls: bool) -> aio.Channel:
    settings = [
        ("grpc.max_send_message_length", options.message_bytes),
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.connect_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", int(options.connect_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not tls:
        return aio.insecure_channel(target, settings)
    return aio.secure_channel(target, grpc.ssl_channel_credentials(options.read_roots()), settings)
