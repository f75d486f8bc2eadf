"""Emulated devices: the work is done, one piece at a time, and takes as long as it is declared to."""

from __future__ import annotations

import asyncio
import time

import pytest

from msao_compile.bench import virtual
from msao_compile.bench.paced import PacedDevice, SlowedDevice
from msao_compile.manifest.offload import Line, Primitives
from msao_compile.runtime.device import Work

TIMES = Primitives(
    model="edge",
    prepare=Line(fixed_ms=1.0, each_ms=2.0),
    encode=Line(fixed_ms=0.0, each_ms=30.0),
    prefill=Line(fixed_ms=10.0, each_ms=0.5),
    decode=Line(fixed_ms=7.0, each_ms=1.0),
    verify=Line(fixed_ms=20.0, each_ms=3.0),
)


def now_ms() -> float:
    return asyncio.get_running_loop().time() * 1e3


@pytest.mark.parametrize(
    ("kind", "count", "takes_ms"),
    [("prepare", 2, 5.0), ("encode", 2, 60.0), ("prefill", 8, 14.0), ("decode", 4, 11.0), ("draft", 1, 8.0),
     ("verify", 5, 35.0), ("probe", 3, 0.0)],
)  # fmt: skip
def test_each_kind_takes_its_own_time(kind: Work, count: int, takes_ms: float) -> None:
    async def work() -> tuple[int, float, dict[str, float]]:
        device = PacedDevice("edge", TIMES)
        return await device.run(kind, count, lambda: 42), now_ms(), device.busy_ms

    found, passed_ms, busy_ms = virtual.run(work())
    assert (found, busy_ms) == (42, {kind: takes_ms})
    assert passed_ms == pytest.approx(takes_ms)


def test_a_caller_hears_a_turn_later_while_the_device_goes_on() -> None:
    async def work() -> list[tuple[str, float]]:
        device, told = PacedDevice("edge", TIMES, turn_ms=2.0), list[tuple[str, float]]()

        async def ask(name: str) -> None:
            await device.run("decode", 1, lambda: None)
            told.append((name, round(now_ms(), 6)))

        await asyncio.gather(ask("a"), ask("b"))
        return told

    assert virtual.run(work()) == [("a", 10.0), ("b", 18.0)]


def test_on_the_clock_work_takes_no_less_than_declared_and_fails_as_itself() -> None:
    def fails() -> None:
        raise KeyError("own")

    async def work() -> tuple[int, float]:
        device, began_s = SlowedDevice("edge", TIMES), time.perf_counter()
        found = await device.run("encode", 1, lambda: 5)
        passed_ms = (time.perf_counter() - began_s) * 1e3
        with pytest.raises(KeyError):
            await device.run("decode", 1, fails)
        device.close()
        return found, passed_ms

    found, passed_ms = asyncio.run(work())
    assert found == 5 and passed_ms >= 30.0


def test_one_piece_at_a_time_in_the_order_it_came() -> None:
    async def work() -> tuple[list[tuple[str, float]], int]:
        device, told = PacedDevice("edge", TIMES), []

        async def ask(name: str, kind: Work) -> None:
            await device.run(kind, 1, lambda: None)
            told.append((name, round(now_ms(), 6)))

        given: list[tuple[str, Work]] = [("a", "decode"), ("b", "verify"), ("c", "draft")]
        asked = [asyncio.ensure_future(ask(name, kind)) for name, kind in given]
        await asyncio.sleep(0.001)
        waiting = device.waiting
        await asyncio.gather(*asked)
        return told, waiting

    assert virtual.run(work()) == ([("a", 8.0), ("b", 31.0), ("c", 39.0)], 2)


def test_what_runs_takes_its_time_even_where_nobody_waits_for_it_any_more() -> None:
    async def work() -> tuple[float, float]:
        device = PacedDevice("edge", TIMES)
        left = asyncio.ensure_future(device.run("verify", 1, lambda: None))
        await asyncio.sleep(0.005)
        left.cancel()
        await device.run("decode", 1, lambda: None)
        return now_ms(), device.busy_ms["verify"]

    passed_ms, verify_ms = virtual.run(work())
    assert passed_ms == pytest.approx(23.0 + 8.0)
    assert verify_ms == 23.0


def test_what_is_given_up_before_its_turn_is_not_done_as_on_a_real_device() -> None:
    async def work() -> tuple[float, list[str], int]:
        device, done = PacedDevice("edge", TIMES), list[str]()
        runs = asyncio.ensure_future(device.run("decode", 1, lambda: done.append("decode")))
        left = asyncio.ensure_future(device.run("verify", 1, lambda: done.append("verify")))
        await asyncio.sleep(0.001)
        left.cancel()
        await runs
        await device.run("draft", 1, lambda: done.append("draft"))
        return now_ms(), done, device.waiting

    passed_ms, done, waiting = virtual.run(work())
    assert passed_ms == pytest.approx(16.0)
    assert (done, waiting) == (["decode", "draft"], 0)


def test_work_that_fails_lets_the_next_have_its_turn() -> None:
    def fails() -> None:
        raise KeyError("own")

    async def work() -> int:
        device = PacedDevice("edge", TIMES)
        with pytest.raises(KeyError):
            await device.run("decode", 1, fails)
        return await device.run("decode", 1, lambda: 5)

    assert virtual.run(work()) == 5
