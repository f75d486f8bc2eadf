"""Emulated devices: work is really done, and takes as long as a profile says, in the loop's time or on the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.device import Device, Work

T = TypeVar("T")


class PacedDevice(Device):
    """A device of declared speed; one piece of work at a time, in the order it came.

    After each piece its caller hears of it `turn_ms` later, while the device goes on: threads and event loops.
    """

    def __init__(self, name: str, times: Primitives, turn_ms: float = 0.0) -> None:
        super().__init__(name)
        self.times, self.turn_ms = times, turn_ms
        self._turn = asyncio.Lock()

    async def run(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """Do `work` when its turn comes, and let its time pass; what is given up before its turn is not done."""
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        found = await asyncio.shield(asyncio.ensure_future(self._paced(kind, count, work)))
        if self.turn_ms:
            await asyncio.sleep(self.turn_ms / 1e3)
        return found

    async def _paced(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """What nobody waits for any more still takes its time."""
        try:
            found = work()
            spent_ms = line_of(self.times, kind).at(count)
            self.busy_ms[kind] = self.busy_ms.get(kind, 0.0) + spent_ms
            await asyncio.sleep(spent_ms / 1e3)
        finally:
            self._turn.release()
        return found


class SlowedDevice(Device):
    """A device of declared speed in real time: its thread does a piece of work and waits until it has taken so long."""

    def __init__(self, name: str, times: Primitives) -> None:
        super().__init__(name)
        self.times = times

    async def run(self, kind: Work, count: int, work: Callable[[], T]) -> T:
        """As `Device.run`; what takes longer than declared by itself is not waited for."""
        return await super().run(kind, count, lambda: lasting(self.times, kind, count, work))


def lasting(times: Primitives, kind: Work, count: int, work: Callable[[], T]) -> T:
    """Do `work`, and wait until it has taken as long as declared."""
    until_s = time.perf_counter() + line_of(times, kind).at(count) / 1e3
    try:
        return work()
    finally:
        time.sleep(max(until_s - time.perf_counter(), 0.0))


def line_of(times: Primitives, kind: Work) -> Line:
    """The time of a kind of work; a draft is a step of the drafter, a probe is paid for elsewhere."""
    named = {"draft": times.decode, "probe": Line(fixed_ms=0.0, each_ms=0.0)}
    found: Line = named[kind] if kind in named else getattr(times, kind)
    return found
