"""Blocking engines under an asynchronous server: one thread for those that share modules, a turn for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class Lane:
    """The thread in which some engines run. Requests take turns in the order in which they came."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "engines")
        self.turn = asyncio.Lock()


class Drawn(Generic[Item]):
    """A blocking generator drawn item by item from a lane's thread, alone on that lane from `start` to `close`.

    Nothing runs ahead of the reader: the next item is computed when it is asked for. What the generator raises is
    raised at `draw`. A reader that is cancelled meanwhile loses nothing but the item: `close` waits for its end.
    """

    def __init__(self, lane: Lane, source: Generator[Item, Any, Any]) -> None:
        self._lane, self._source = lane, source
        self._holds = False

    async def start(self) -> None:
        """Wait for the turn."""
        await self._lane.turn.acquire()
        self._holds = True

    async def draw(self) -> Item | None:
        """The next item, None after the last."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._lane.thread, next, self._source, None)

    async def close(self) -> None:
        """End the generator where it stands, at its next item, and give the turn to the next request."""
        if not self._holds:
            return
        self._holds = False
        closed = asyncio.get_running_loop().run_in_executor(self._lane.thread, self._source.close)
        closed.add_done_callback(lambda _: self._lane.turn.release())  # even where the wait below is cancelled
        await asyncio.shield(closed)
