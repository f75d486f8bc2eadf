"""One machine's engines: one piece of work at a time, off the event loop that answers clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

Work = Literal["prepare", "encode", "prefill", "decode", "verify", "draft", "probe"]
T = TypeVar("T")


def loop_ms() -> float:
    """Milliseconds of the running event loop's clock, which never goes back and may be emulated."""
    return asyncio.get_running_loop().time() * 1e3


class Device:
    """Runs work in the order it comes. An emulated one says how long each piece takes instead.

    `busy_ms` sums what ran, by kind; `waiting` is how many pieces wait.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.busy_ms: dict[str, float] = {}
        self.waiting = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """Do `work`, which is `count` tokens, pictures or rows of a kind, after what came before it."""
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._timed, kind, work)
        finally:
            self.waiting -= 1

    def _timed(self, kind: Work, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.busy_ms[kind] = self.busy_ms.get(kind, 0.0) + (time.perf_counter() - start) * 1e3

    def close(self) -> None:
        """Let the thread end; what was asked for before is done."""
        self._thread.shutdown(wait=False)
