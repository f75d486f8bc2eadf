"""The server's process: its socket, its certificate, its token, and how it ends."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from msao_compile.errors import InputError
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.app import application
from msao_compile.runtime.serve.edge.chat import Service
from msao_compile.runtime.serve.edge.gate import LOOPBACK_NAMES, Admission
from msao_compile.runtime.serve.edge.limits import Door, Limits
from msao_compile.runtime.serve.heads import PromptHeads

logger = logging.getLogger(__name__)

LEAST_TOKEN_CHARACTERS = 16
CONNECTIONS = 512
CUT_S = 2
"""After the drain's time what still runs is cut, within so many seconds."""


@dataclass(frozen=True)
class Listening:
    """Where and how to serve. Beyond loopback a token is asked for, unless `anonymous` says that anyone may come."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    anonymous: bool = False
    certificate: Path | None = None
    key: Path | None = None
    files: Path | None = None
    limits: Limits = field(default_factory=Limits)


def serve(runtime: Runtime, where: Listening, announce: Callable[[str], None]) -> None:
    """Serve a deployment until SIGTERM or SIGINT; then running answers finish, for `limits.drain_s` at most.

    `announce` is called once with the URL, when requests are taken.

    Raises:
        InputError: address, token, certificate or folder cannot be used.
        MsaoError: as `application`.
    """
    admission = admit(where)
    _check_certificate(where)
    if where.files is not None and not where.files.is_dir():
        raise InputError(f"--allow-files {where.files} is no folder: give the folder that pictures may be read from")
    with _bind(where.host, where.port) as listener:
        app = application(runtime, admission, where.limits, where.files)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="off",
            http=PromptHeads, ws="none", loop="asyncio", limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=CUT_S,
            ssl_certfile=where.certificate, ssl_keyfile=where.key,
        )  # fmt: skip
        service: Service = app.state.service
        listener.listen(128)
        _Server(config, service.door, where.limits.drain_s, lambda: announce(_url(where, listener))).run([listener])


def admit(where: Listening) -> Admission:
    """Who may come in at this address.

    Raises:
        InputError: the address is open to others and there is no token, or the token cannot be used.
    """
    local = _is_loopback(where.host)
    token = None if where.token_file is None else _token(where.token_file)
    if token is None and not local and not where.anonymous:
        raise InputError(
            f"--host {where.host} lets other machines in: give --token-file FILE, or --allow-anonymous to answer anyone"
        )
    if token is not None and not local and where.certificate is None:
        logger.warning("the token crosses the network in the clear: give --tls-cert and --tls-key, or TLS before it")
    return Admission(token, LOOPBACK_NAMES if local else None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _token(file: Path) -> bytes:
    try:
        token = file.read_bytes().strip()
        mode = file.stat().st_mode
    except OSError as error:
        raise InputError(
            f"--token-file {file} cannot be read ({error.strerror}): give a file with the token"
        ) from error
    if len(token) < LEAST_TOKEN_CHARACTERS or not all(0x21 <= byte <= 0x7E for byte in token):
        raise InputError(
            f"--token-file {file} holds no token of at least {LEAST_TOKEN_CHARACTERS} characters without blanks: write "
            "one, for example with `openssl rand -hex 32`"
        )
    if os.name == "posix" and mode & 0o077:
        logger.warning("%s can be read by others: chmod 600 it", file)
    return token


def _check_certificate(where: Listening) -> None:
    """Read the certificate before anything else takes time; an encrypted key would ask at the terminal."""
    if where.certificate is None and where.key is None:
        return
    if where.certificate is None or where.key is None:
        raise InputError("TLS needs both files: give --tls-cert and --tls-key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(where.certificate, where.key, lambda: "")
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"--tls-cert {where.certificate} with --tls-key {where.key} cannot be used ({said}): give a PEM "
            "certificate and its key, without a passphrase"
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host} is no address of this machine ({error}): give one, or leave it out") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} of {host} cannot be taken ({error.strerror}): choose another with --port, or 0 for a free one"
        ) from error
    return listener


def _url(where: Listening, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if where.certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Server(uvicorn.Server):
    """Uvicorn's server, which goes on listening while it drains, so that `/readyz` can say so."""

    def __init__(self, config: uvicorn.Config, door: Door, drain_s: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._door, self._drain_s, self._ready = door, drain_s, ready
        self._ends_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second cuts."""
        if self._door.draining:
            self.should_exit = self.force_exit = True
        self._door.draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where, once it is true."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether the last answer is out, or time is."""
        if self._door.draining and self._ends_at is None:
            self._ends_at = time.perf_counter() + self._drain_s
            logger.info("draining", extra={"facts": {"inside": self._door.inside}})
        if self._ends_at is not None and (not self._door.inside or time.perf_counter() >= self._ends_at):
            self.should_exit = True
        return await super().on_tick(counter)
