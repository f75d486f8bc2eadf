"""Real clouds and shaped links to them, as tests start and end them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from building import ROOT, command

from msao_compile.bench.proxy import Proxy
from msao_compile.bench.shape import Shape
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.cloud.service import CloudLimits
from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer
from msao_compile.runtime.serve.cloud.opening import open_deployment
from msao_compile.runtime.serve.cloud.served import Bounds


@dataclass(frozen=True)
class Cloud:
    """`serve --role cloud` in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    http_port: int

    @property
    def address(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def cloud(folder: Path, *options: object, port: int = 0, http_port: int = 0) -> Iterator[Cloud]:
    """A cloud that serves a deployment until the block ends."""
    words = command("serve", folder, "--role", "cloud", "--port", port, "--http-port", http_port, "--json", *options)
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the cloud did not start"
        told = json.loads(line)
        yield Cloud(process, told["port"], told["http_port"])
    finally:
        process.kill()
        process.communicate()


@contextmanager
def shaped(port: int, shape: Shape, cuts: bool = False) -> Iterator[Proxy]:
    """A proxy in front of a port of this machine, in the event loop that links live in."""
    proxy = Proxy(("127.0.0.1", port), shape, cuts=cuts)
    bridge().run(proxy.start())
    try:
        yield proxy
    finally:
        bridge().run(proxy.close())


@contextmanager
def inside(folder: Path, port: int = 0) -> Iterator[CloudServer]:
    """A cloud server in this process, in the event loop that links live in."""

    async def start() -> CloudServer:
        _, served = open_deployment(folder, None, CloudLimits())
        server = CloudServer(served, CloudOptions(port=port, bounds=Bounds(drain_s=0.2)))
        await server.start()
        return server

    server = bridge().run(start())
    try:
        yield server
    finally:
        bridge().run(server.stop())


def later(seconds: float, do: Callable[[], object]) -> None:
    """In so many seconds, in the event loop that links live in."""
    loop = bridge().loop
    loop.call_soon_threadsafe(loop.call_later, seconds, do)
