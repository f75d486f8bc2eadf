"""A cloud server as one thing that starts, tells its ports, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import uvicorn
from grpc import aio
from tritonclient.grpc import service_pb2_grpc

from msao_compile.errors import InputError
from msao_compile.runtime.serve.cloud.desk import Desk
from msao_compile.runtime.serve.cloud.grpc import CloudServicer
from msao_compile.runtime.serve.cloud.http import http_app
from msao_compile.runtime.serve.cloud.metrics import Metrics
from msao_compile.runtime.serve.cloud.security import Certificate, Tokens, read_tokens
from msao_compile.runtime.serve.cloud.served import Bounds, Served
from msao_compile.runtime.serve.heads import PromptHeads

log = logging.getLogger("msao_compile.serve")
LAST_WORDS_S = 0.5
"""So long open streams have to take what was written before they are cut."""


@dataclass(frozen=True)
class CloudOptions:
    """Where a server listens, whom it lets in, what it takes."""

    host: str = "127.0.0.1"
    port: int = 0
    http_port: int = 0
    """0: any port that is free; `CloudServer` tells which."""
    token_file: Path | None = None
    certificate: Certificate | None = None
    bounds: Bounds = field(default_factory=Bounds)


class CloudServer:
    """gRPC and HTTP for one served model, in the event loop that starts it; `port` and `http_port` are real ones."""

    def __init__(self, served: Served, options: CloudOptions) -> None:
        self.options = options
        self.port = self.http_port = 0
        self._tokens = read_tokens(options.token_file)
        self._metrics = Metrics(served.gauges)
        self._desk = Desk(served, options.bounds, self._metrics)
        self._grpc: aio.Server | None = None
        self._http: _Http | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen and take requests.

        Raises:
            InputError: an address is taken or unknown, or a file of tokens or certificates is wrong.
        """
        listening = _listen(self.options.host, self.options.http_port)
        self._grpc, self.port = _grpc_server(self._desk, self._tokens, self.options)
        self.http_port = listening.getsockname()[1]
        self._http = _Http(self._http_settings())
        await self._grpc.start()
        self._serving = asyncio.create_task(self._http.serve([listening]))
        self._desk.open = True
        if not self._tokens and not _is_loopback(self.options.host):
            log.warning("everybody who reaches %s is let in: give a token file", self.options.host)

    async def stop(self) -> bool:
        """Not ready at once, then wait for running requests, then end; whether all of them ended in time."""
        in_time = await self._desk.drained(self.options.bounds.drain_s)
        if self._grpc is not None:
            await self._grpc.stop(LAST_WORDS_S)
        if self._http is not None and self._serving is not None:
            self._http.should_exit = True
            await self._serving
        return in_time

    def _http_settings(self) -> uvicorn.Config:
        certificate, bounds = self.options.certificate, self.options.bounds
        return uvicorn.Config(
            http_app(self._desk, self._tokens, self._metrics),
            log_config=None,
            access_log=False,
            lifespan="off",
            http=PromptHeads,
            ws="none",
            server_header=False,
            limit_concurrency=bounds.connections,
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate.chain if certificate else None,
            ssl_keyfile=certificate.key if certificate else None,
        )


async def run_until_signal(server: CloudServer, announce: Callable[[CloudServer], None]) -> bool:
    """Start, tell the ports, serve until SIGTERM or SIGINT, drain; raises as `CloudServer.start`.

    A second signal changes nothing: the drain has its bound.
    """
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await server.start()
    announce(server)
    await told.wait()
    log.info("told to stop: draining")
    in_time = await server.stop()
    log.info("stopped" if in_time else "stopped; requests that ran on were cut")
    return in_time


class _Http(uvicorn.Server):
    """Uvicorn that leaves the process' signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _grpc_server(desk: Desk, tokens: Tokens, options: CloudOptions) -> tuple[aio.Server, int]:
    bounds = options.bounds
    server = aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            # twice the bound: a request a little too large is answered, and only a far larger one ends the stream
            ("grpc.max_receive_message_length", 2 * bounds.request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.server_handshake_timeout_ms", 10_000),
        ]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(CloudServicer(desk, tokens), server)
    address = f"{_bracketed(options.host)}:{options.port}"
    try:
        if options.certificate is None:
            return server, server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials([options.certificate.read()])
        return server, server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise InputError(
            f"gRPC cannot listen on {address}: it is taken, or no address of this machine; choose another"
        ) from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named, because asyncio turns Nagle's delay off only where it is
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        said = getattr(error, "strerror", None) or error
        raise InputError(f"HTTP cannot listen on {host}:{port} ({said}): choose another") from error
    return listening


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
