"""A link with faults does to each request what its seed says, and nothing that a link may not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields

import pytest

from msao_compile.errors import InputError, LinkDown, RemoteError
from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.faulty import Faults, FaultyLink
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message


class Counting:
    """A cloud that counts to five for each request, and remembers which came."""

    def __init__(self) -> None:
        self.came: list[str] = []

    async def handle(self, message: Message) -> AsyncIterator[Message]:
        """Five replies."""
        self.came.append(message.kind)
        for number in range(5):
            yield Message("token", {"number": number})


def told(faults: Faults, seed: int, requests: int = 30, restart: bool = False) -> tuple[Counting, list[list[int]], int]:
    """What came there, what came back by request, and how many requests failed."""
    cloud = Counting()

    async def run() -> tuple[list[list[int]], int]:
        link = FaultyLink(Loopback(cloud.handle), faults, seed, (lambda: Loopback(cloud.handle)) if restart else None)
        back: list[list[int]] = [[] for _ in range(requests)]
        failed = 0

        async def one(index: int) -> None:
            nonlocal failed
            try:
                async for reply in link.call(Message(f"request {index}"), Traffic()):
                    back[index].append(reply.fields["number"])
            except LinkDown:
                failed += 1

        await asyncio.gather(*(one(index) for index in range(requests)))
        return back, failed

    return cloud, *asyncio.run(run())


def test_without_faults_it_is_the_link_itself() -> None:
    cloud, back, failed = told(Faults(), 1)
    assert (back, failed) == ([list(range(5))] * 30, 0)
    assert cloud.came == [f"request {index}" for index in range(30)]


def test_a_seed_says_what_happens() -> None:
    faults = Faults(lost_before=0.2, lost_after=0.2, told_twice=0.2, sent_twice=0.2)
    assert told(faults, 1)[1:] == told(faults, 1)[1:]
    assert told(faults, 1)[1] != told(faults, 2)[1]


def test_lost_before_never_comes_and_lost_after_does() -> None:
    cloud, back, failed = told(Faults(lost_before=1.0), 1)
    assert (cloud.came, failed) == ([], 30)
    cloud, back, failed = told(Faults(lost_after=1.0), 1)
    assert (len(cloud.came), failed) == (30, 30)
    assert {len(one) for one in back} > {0, 1}  # some of the replies are there, and never one behind a lost one
    assert all(one == list(range(len(one))) for one in back)


def test_twice_is_twice() -> None:
    cloud, back, _ = told(Faults(sent_twice=1.0, told_twice=1.0), 1)
    assert len(cloud.came) == 60
    assert back == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 30


def test_late_requests_overtake_each_other() -> None:
    cloud, back, failed = told(Faults(late_ms=5), 1)
    assert cloud.came != sorted(cloud.came, key=lambda kind: int(kind.split()[1]))
    assert (back, failed) == ([list(range(5))] * 30, 0)


def test_a_cloud_that_starts_anew_ends_what_was_under_way() -> None:
    _, back, failed = told(Faults(late_ms=5, restarted=0.1), 1, restart=True)
    assert 0 < failed < 30
    assert all(one == list(range(len(one))) for one in back)


@pytest.mark.parametrize("name", [entry.name for entry in fields(Faults)])
def test_a_chance_is_a_chance(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Faults(**{name: -0.1})
    if not name.endswith("_ms"):
        with pytest.raises(InputError, match=name):
            Faults(**{name: 1.1})


def test_what_the_cloud_refuses_is_no_fault_of_the_link() -> None:
    async def refusing(message: Message) -> AsyncIterator[Message]:
        yield Message("error", {"code": "internal", "message": "no"})

    async def run() -> None:
        link = FaultyLink(Loopback(refusing), Faults(sent_twice=1.0), 1)
        with pytest.raises(RemoteError, match="no"):
            await anext(link.call(Message("hello"), Traffic()))
        await link.close()
        with pytest.raises(LinkDown, match="closed"):
            await anext(link.call(Message("hello"), Traffic()))

    asyncio.run(run())
