"""Blocking generators under an event loop: in turn, one item at a time, and ended where the reader stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from msao_compile.runtime.serve.edge.lane import Drawn, Lane


class Counting:
    """A generator that tells what became of it; without `go` it stays at its next item, which is `begun`."""

    def __init__(self) -> None:
        self.given, self.ended, self.threads = 0, False, set[int]()
        self.begun, self.go = asyncio.Event(), threading.Event()
        self.go.set()
        self.loop = asyncio.get_running_loop()

    def items(self) -> Iterator[int]:
        try:
            while True:
                self.threads.add(threading.get_ident())
                self.loop.call_soon_threadsafe(self.begun.set)
                assert self.go.wait(60)
                self.given += 1
                yield self.given
        finally:
            self.ended = True


async def start(lane: Lane, source: Counting) -> Drawn[int]:
    drawn: Drawn[int] = Drawn(lane, source.items())
    await drawn.start()
    return drawn


def test_nothing_runs_ahead_of_the_reader_and_all_in_one_thread() -> None:
    async def read() -> None:
        source = Counting()
        drawn = await start(Lane(), source)
        assert [await drawn.draw() for _ in range(3)] == [1, 2, 3]
        await asyncio.sleep(0.02)
        assert source.given == 3
        await drawn.close()
        assert source.ended
        assert len(source.threads) == 1 and threading.get_ident() not in source.threads

    asyncio.run(read())


def test_the_end_is_none_and_an_error_is_the_readers() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    async def read() -> None:
        lane = Lane()
        drawn: Drawn[int] = Drawn(lane, iter_(2))
        await drawn.start()
        assert [await drawn.draw() for _ in range(3)] == [0, 1, None]
        await drawn.close()
        failing: Drawn[int] = Drawn(lane, items())
        await failing.start()
        assert await failing.draw() == 1
        with pytest.raises(ZeroDivisionError):
            await failing.draw()
        await failing.close()
        assert not lane.turn.locked()

    def iter_(count: int) -> Iterator[int]:
        yield from range(count)

    asyncio.run(read())


def test_a_reader_that_is_cancelled_ends_the_generator_at_its_next_item() -> None:
    async def read() -> None:
        lane, source = Lane(), Counting()
        drawn = await start(lane, source)
        source.go.clear()
        reader = asyncio.create_task(drawn.draw())
        await source.begun.wait()
        reader.cancel()
        closer = asyncio.create_task(drawn.close())
        await asyncio.sleep(0)
        source.go.set()
        await closer
        assert (source.given, source.ended, lane.turn.locked()) == (1, True, False)

    asyncio.run(read())


def test_requests_take_turns_in_their_order_even_if_one_gives_up() -> None:
    async def read() -> None:
        lane, order = Lane(), list[str]()

        async def wait(name: str) -> None:
            drawn = await start(lane, Counting())
            order.append(name)
            await drawn.close()

        first = await start(lane, Counting())
        waiting = []
        for name in "abc":
            waiting.append(asyncio.create_task(wait(name)))
            await asyncio.sleep(0)
        waiting[1].cancel()
        await first.close()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == ["a", "c"]

    asyncio.run(read())


def test_a_close_that_is_cancelled_itself_still_gives_the_turn_away() -> None:
    async def read() -> None:
        lane, source = Lane(), Counting()
        drawn = await start(lane, source)
        source.go.clear()
        reader = asyncio.create_task(drawn.draw())
        await source.begun.wait()
        closer = asyncio.create_task(drawn.close())
        await asyncio.sleep(0)
        closer.cancel()
        reader.cancel()
        source.go.set()
        async with asyncio.timeout(60):
            async with lane.turn:
                assert source.ended

    asyncio.run(read())
