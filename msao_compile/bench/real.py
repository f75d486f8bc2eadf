"""The processes of a check: a cloud, a shaped link for each edge, and the edges; nothing of them outlives the block."""

from __future__ import annotations

import asyncio
import json
import os
import select
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from msao_compile.bench.edge_process import EdgeTask, main
from msao_compile.bench.proxy import Proxy
from msao_compile.bench.shape import Shape
from msao_compile.errors import MsaoError, StageError
from msao_compile.manifest.offload import Primitives

START_S, END_S = 120.0, 3.0
"""So long a cloud may take to start, and any process to end before it is killed."""
NEAR = Shape(mbps=10_000.0, rtt_ms=0.0)
"""A link that delays nothing."""


@contextmanager
def cloud(folder: Path, sessions: int, slowed: Primitives | None, log: Path) -> Iterator[int]:
    """`serve --role cloud` for so many sessions, or the same server with a device of declared speed; its gRPC port.

    Raises:
        StageError: it did not start; `log` has what it said.
    """
    words = ["-m", "msao_compile", "serve", str(folder), "--role", "cloud", "--port", "0", "--http-port", "0",
             "--sessions", str(sessions), "--json"]  # fmt: skip
    if slowed is not None:
        words = ["-m", "msao_compile.bench.cloud_process", str(folder), str(sessions), slowed.model_dump_json()]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            env={**os.environ, "PYTHONPATH": path}, process_group=0,  # Ctrl-C reaches the parent alone, which ends it
        )  # fmt: skip
    try:
        yield _port(process, log)
    finally:
        _end(process)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    assert process.stdout is not None  # a pipe
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else b""
    try:
        return int(json.loads(line)["port"])
    except (ValueError, KeyError, TypeError) as error:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise StageError(f"the cloud of the check did not start; its last word in {log}: {lines[-1]}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdout is not None  # a pipe
    process.stdout.close()


@contextmanager
def links(port: int, shapes: Sequence[Shape]) -> Iterator[list[int]]:
    """A proxy of each shape in front of a port of this machine; their ports, in order.

    They live in a thread of their own, whose loop waits by `select`: epoll waits by whole milliseconds.
    """
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    thread = threading.Thread(target=loop.run_forever, name="proxies", daemon=True)
    thread.start()
    proxies = [Proxy(("127.0.0.1", port), shape, seed) for seed, shape in enumerate(shapes)]

    async def start() -> None:
        for proxy in proxies:
            await proxy.start()

    async def close() -> None:
        for proxy in proxies:
            await proxy.close()

    asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield [proxy.port for proxy in proxies]
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(END_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(END_S)


class Edges:
    """Edges in processes of their own, that are asked together."""

    def __init__(self, processes: Sequence[BaseProcess], pipes: Sequence[Connection]) -> None:
        self.processes, self.pipes = processes, pipes

    def message_ms(self) -> float:
        """What a message takes beside the link, as the first edge sees it while the others are silent."""
        self.pipes[0].send("hello")
        return float(self._heard(0))

    def answer(self, policy: str) -> list[list[Any]]:
        """Each edge's outcomes under a policy.

        Raises:
            MsaoError: what an edge raised. StageError: an edge's process ended.
        """
        for told in (policy, "go"):
            for pipe in self.pipes:
                pipe.send(told)
            heard = [self._heard(index) for index in range(len(self.pipes))]
        return heard

    def _heard(self, index: int) -> Any:
        try:
            found = self.pipes[index].recv()
        except (EOFError, ConnectionError) as error:
            raise StageError(
                f"edge {index} of the check ended without an answer: is there memory for {len(self.pipes)} of them?"
            ) from error
        if isinstance(found, MsaoError):
            raise found
        return found


@contextmanager
def edges(tasks: Sequence[EdgeTask]) -> Iterator[Edges]:
    """A process for each task."""
    context = get_context("spawn")
    ours, processes = list[Connection](), list[BaseProcess]()
    try:
        for task in tasks:
            mine, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=main, args=(theirs, task), daemon=True)
            process.start()
            theirs.close()
            ours.append(mine)
            processes.append(process)
        yield Edges(processes, ours)
    finally:
        for pipe in ours:
            pipe.close()
        for process in processes:
            process.terminate()
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
