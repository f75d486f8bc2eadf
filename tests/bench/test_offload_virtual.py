"""Time that is counted: it jumps, keeps the order of deadlines, and never waits for nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

from msao_compile.bench import virtual
from msao_compile.errors import StageError


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_an_hour_passes_at_once() -> None:
    async def work() -> float:
        assert now_s() == 0.0
        await asyncio.sleep(3600)
        return now_s()

    began_s = time.perf_counter()
    assert virtual.run(work()) == pytest.approx(3600)
    assert time.perf_counter() - began_s < 60


def test_what_is_due_earlier_comes_earlier_and_what_is_due_at_once_in_the_order_of_asking() -> None:
    async def work() -> list[tuple[str, float]]:
        told: list[tuple[str, float]] = []

        async def wait(name: str, *delays_s: float) -> None:
            for delay_s in delays_s:
                await asyncio.sleep(delay_s)
                told.append((name, round(now_s(), 6)))

        await asyncio.gather(wait("late", 5.0), wait("soon", 1.0, 3.0), wait("first", 2.0), wait("second", 2.0))
        return told

    wanted = [("soon", 1.0), ("first", 2.0), ("second", 2.0), ("soon", 4.0), ("late", 5.0)]
    assert virtual.run(work()) == wanted
    assert virtual.run(work()) == wanted


def test_work_that_computes_takes_no_time() -> None:
    async def work() -> float:
        await asyncio.sleep(1.0)
        time.sleep(0.05)
        return now_s()

    assert virtual.run(work()) == pytest.approx(1.0)


def test_a_deadline_ends_a_wait() -> None:
    async def work() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.5):
                await asyncio.Event().wait()
        return now_s()

    assert virtual.run(work()) == pytest.approx(7.5)


def test_waiting_for_what_nobody_does_is_an_error() -> None:
    async def work() -> None:
        await asyncio.sleep(1.0)
        await asyncio.Event().wait()

    with pytest.raises(StageError, match="virtual time stands still"):
        virtual.run(work())


def test_what_the_work_raises_comes_out() -> None:
    async def work() -> None:
        await asyncio.sleep(1.0)
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        virtual.run(work())
