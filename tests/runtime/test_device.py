"""One piece of work at a time, in the order it came, off the loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from msao_compile.runtime.device import Device


def test_work_runs_one_at_a_time_in_the_order_it_came_and_off_the_loop() -> None:
    device, seen, busy = Device("edge"), [], threading.Lock()

    def work(number: int) -> int:
        assert busy.acquire(blocking=False)
        time.sleep(0.001)
        seen.append((number, threading.current_thread() is threading.main_thread()))
        busy.release()
        return number

    async def run() -> list[int]:
        pieces = [device.run("draft", 1, lambda number=number: work(number)) for number in range(20)]  # type: ignore[misc]
        return await asyncio.gather(*pieces)

    assert asyncio.run(run()) == list(range(20))
    assert seen == [(number, False) for number in range(20)]
    assert device.busy_ms["draft"] >= 20
    assert device.waiting == 0
    device.close()


def test_what_work_raises_reaches_whoever_asked_and_the_next_runs() -> None:
    device = Device("edge")

    async def run() -> int:
        with pytest.raises(ZeroDivisionError):
            await device.run("draft", 1, lambda: 1 // 0)
        return await device.run("draft", 1, lambda: 7)

    assert asyncio.run(run()) == 7
    assert device.waiting == 0
    device.close()
