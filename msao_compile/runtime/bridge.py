"""From callers that wait to the event loop that links and sessions live in: one loop in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class Bridge:
    """A running event loop, and ways into it that block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="links", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """The items of an async iterator as they come; closing this one cancels that one."""
        passed: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for item in source:
                    passed.put(item)
            except Exception as error:  # noqa: BLE001 - it is raised again where the items are drawn
                passed.put(_Raised(error))
            finally:
                passed.put(_END)

        task = asyncio.run_coroutine_threadsafe(pump(), self.loop)
        try:
            while (item := passed.get()) is not _END:
                if isinstance(item, _Raised):
                    raise item.error
                yield item
        finally:
            task.cancel()


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


@cache
def bridge() -> Bridge:
    """The one of this process, made when a link is first needed."""
    return Bridge()
