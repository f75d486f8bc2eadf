"""Callers that wait get what the loop gives, and leave nothing running behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from msao_compile.errors import LinkDown
from msao_compile.runtime.bridge import Bridge, bridge


async def count(to: int, ended: threading.Event, fails: bool = False) -> AsyncIterator[int]:
    try:
        for number in range(to):
            await asyncio.sleep(0.001)
            yield number
        if fails:
            raise LinkDown("gone")
    finally:
        ended.set()


def test_items_come_one_by_one_and_end() -> None:
    ended = threading.Event()
    assert list(bridge().iterate(count(5, ended))) == list(range(5))
    assert ended.wait(60)


def test_what_is_raised_there_is_raised_here_behind_what_came_before() -> None:
    found = []
    with pytest.raises(LinkDown, match="gone"):
        for number in bridge().iterate(count(3, threading.Event(), fails=True)):
            found.append(number)  # noqa: PERF402 - what came before the error counts
    assert found == [0, 1, 2]


def test_leaving_early_ends_the_work_there() -> None:
    ended = threading.Event()
    items = bridge().iterate(count(10**6, ended))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert ended.wait(60)


def test_nothing_runs_before_the_first_item_is_drawn() -> None:
    ended = threading.Event()
    bridge().iterate(count(3, ended))
    assert not ended.wait(0.05)


def test_many_callers_share_one_loop() -> None:
    found: dict[int, list[int]] = {}

    def draw(which: int) -> None:
        found[which] = list(bridge().iterate(count(20, threading.Event())))

    threads = [threading.Thread(target=draw, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {which: list(range(20)) for which in range(8)}
    assert bridge() is bridge()


def test_a_coroutine_gives_its_value_or_its_error() -> None:
    async def half(number: int) -> int:
        return 10 // number

    assert Bridge().run(half(5)) == 2
    with pytest.raises(ZeroDivisionError):
        bridge().run(half(0))
