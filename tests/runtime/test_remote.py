"""How long an answer waits for its cloud, in virtual time: silence is bounded as a whole, and nothing else counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from msao_compile.bench.virtual import run
from msao_compile.errors import Busy, LinkDown
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.remote import Patience, Quiet, RemoteSession
from msao_compile.runtime.wire import contract as c
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.message import Message

BOUNDED = Patience(tries=99, wait_ms=1000.0, silence_ms=10_000.0, quiet_ms=25_000.0)
LIMIT = 6
Replies = Callable[[Message], AsyncIterator[Message]]


class Cloud:
    """A link to a cloud that says what `replies` gives; it notes when each request came."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.asked_s: list[tuple[str, float]] = []

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        self.asked_s.append((message.kind, now_s()))
        async for reply in self.replies(message):
            yield reply

    async def close(self) -> None:
        """Nothing is open."""


def now_s() -> float:
    return asyncio.get_running_loop().time()


def answer(cloud: Cloud, patience: Patience = BOUNDED) -> RemoteSession:
    return RemoteSession(cloud, Message("prefill"), Clock(), Traffic(), patience)  # type: ignore[arg-type]


async def silent(message: Message) -> AsyncIterator[Message]:
    await asyncio.sleep(3600)
    yield message


async def told(message: Message, every_s: float, count: int = LIMIT) -> AsyncIterator[Message]:
    """An answer of a token every so many seconds, to its end where `count` is all of it, else silence."""
    name, known = message.fields["session"], len(message.fields["committed"])
    ready = c.Ready(session=name, base=known, prompt_tokens=1, limit=LIMIT, modules_ms={})
    yield c.write("ready", ready, {c.TOKENS: np.zeros(0, np.int64)})
    for position in range(known, count):
        await asyncio.sleep(every_s)
        yield c.write("token", c.TokenIs(session=name, position=position, id=position))
    if count < LIMIT:
        await asyncio.sleep(3600)
    yield c.write("done", c.Done(session=name, known=LIMIT, finish="length"))


def test_a_cloud_that_stays_silent_costs_an_answer_its_patience_once_and_not_for_each_try() -> None:
    async def work() -> tuple[float, int]:
        cloud = Cloud(silent)
        with pytest.raises(LinkDown, match="said nothing to a prefill"):
            async for _ in answer(cloud).tokens():
                continue
        return now_s(), sum(kind == "prefill" for kind, _ in cloud.asked_s)

    assert run(work()) == (25.0, 3)  # after 10 and 21 seconds it was tried again


def test_silence_in_the_middle_is_counted_from_the_last_token() -> None:
    async def work() -> tuple[list[int], float]:
        remote = answer(Cloud(lambda message: told(message, 9.0, 3)))
        with pytest.raises(LinkDown):
            async for _ in remote.tokens():
                continue
        return remote.committed, now_s()

    assert run(work()) == ([0, 1, 2], 3 * 9.0 + 25.0)


def test_a_slow_cloud_is_waited_for_as_long_as_it_says_something() -> None:
    async def work() -> list[int]:
        return [token async for token in answer(Cloud(lambda message: told(message, 9.9))).tokens()]

    assert run(work()) == list(range(LIMIT))


def test_what_a_reader_takes_for_himself_is_no_silence_of_the_cloud() -> None:
    async def work() -> list[int]:
        async def breaks(message: Message) -> AsyncIterator[Message]:
            async for reply in told(message, 1.0, len(message.fields["committed"]) + 1):
                yield reply
                if reply.kind == "token":
                    raise LinkDown("broken")

        found = []
        async for token in answer(Cloud(breaks)).tokens():
            found.append(token)
            await asyncio.sleep(100)
            if len(found) == LIMIT - 1:
                break
        return found

    assert run(work()) == list(range(LIMIT - 1))


def test_a_time_that_is_longer_than_what_is_left_is_not_waited_for() -> None:
    async def busy(message: Message) -> AsyncIterator[Message]:
        raise Busy("later", 9_000)
        yield message

    async def work() -> tuple[float, int]:
        cloud = Cloud(busy)
        with pytest.raises(Busy):
            async for _ in answer(cloud).tokens():
                continue
        return now_s(), sum(kind == "prefill" for kind, _ in cloud.asked_s)

    assert run(work()) == (18.0, 3)


def test_a_session_that_is_left_takes_nothing_of_the_next_ones_patience() -> None:
    """Its closing is never answered, while the next one is read slowly."""

    async def replies(message: Message) -> AsyncIterator[Message]:
        if message.kind == "close":
            await asyncio.sleep(3600)
        known = len(message.fields["committed"])
        async for reply in told(message, 1.0, min(known + 1, 2)):
            yield reply
            if reply.kind == "token" and known == 0:
                raise LinkDown("broken")

    async def work() -> tuple[int, float]:
        remote, read_s = answer(Cloud(replies)), 0.0
        with pytest.raises(LinkDown, match="said nothing"):
            async for token in remote.tokens():
                if token == 1:
                    await asyncio.sleep(20)
                    read_s = now_s()
        return len(remote.committed), now_s() - read_s

    assert run(work()) == (2, 25.0)


def test_waits_at_the_same_time_count_once_and_what_lies_between_does_not() -> None:
    async def work() -> None:
        quiet = Quiet()

        async def wait(seconds: float, after_s: float = 0.0) -> None:
            await asyncio.sleep(after_s)
            with quiet:
                await asyncio.sleep(seconds)

        await asyncio.gather(wait(3.0), wait(1.0, after_s=1.0), wait(1.0, after_s=1.5))
        await asyncio.sleep(50)
        assert quiet.spent_ms == 3000
        await wait(4.0)
        assert quiet.spent_ms == 7000
        waiting = asyncio.ensure_future(wait(5.0))
        await asyncio.sleep(2)
        assert quiet.spent_ms == 9000
        quiet.broken()
        await asyncio.sleep(1)
        assert quiet.spent_ms == 1000
        await waiting
        assert quiet.spent_ms == 3000

    run(work())
