"""Emulated devices: the work is really done, and takes as long as a profile says in the loop's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.device import Device, Work

T = TypeVar("T")


class PacedDevice(Device):
    """A device of declared speed; one piece of work at a time, in the order it came."""

    def __init__(self, name: str, times: Primitives) -> None:
        super().__init__(name)
        self.times = times
        self._turn = asyncio.Lock()

    async def run(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """Do `work` when its turn comes, and let its time pass; what is given up before its turn is not done."""
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        return await asyncio.shield(asyncio.ensure_future(self._paced(kind, count, work)))

    async def _paced(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """What nobody waits for any more still takes its time."""
        try:
            found = work()
            spent_ms = self._line(kind).at(count)
            self.busy_ms[kind] = self.busy_ms.get(kind, 0.0) + spent_ms
            await asyncio.sleep(spent_ms / 1e3)
        finally:
            self._turn.release()
        return found

    def _line(self, kind: Work) -> Line:
        named = {"draft": self.times.decode, "probe": Line(fixed_ms=0.0, each_ms=0.0)}
        found: Line = named[kind] if kind in named else getattr(self.times, kind)
        return found
