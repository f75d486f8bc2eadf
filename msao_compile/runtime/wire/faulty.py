"""A link on which things go wrong, as often as asked and by a seed: what clients are tried against.

Requests are late, so that they overtake each other, arrive twice, or not at all; connections fail before or after a
request took effect; replies come twice; the cloud stalls, forgets a session, or starts anew and forgets all of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from random import Random

from msao_compile.errors import InputError, LinkDown, RemoteError
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.message import Message


@dataclass(frozen=True)
class Faults:
    """The chance of each fault at each request, and how long things take.

    `late_ms`: each request and each reply waits up to so long. `stall_ms`: so long the cloud says nothing.

    Raises:
        InputError: a chance is not one.
    """

    late_ms: float = 0.0
    lost_before: float = 0.0
    lost_after: float = 0.0
    sent_twice: float = 0.0
    told_twice: float = 0.0
    forgotten: float = 0.0
    stalled: float = 0.0
    restarted: float = 0.0
    stall_ms: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 <= value <= (float("inf") if entry.name.endswith("_ms") else 1):
                raise InputError(f"faults: {entry.name} is {value}; it must be a chance, or milliseconds")


class FaultyLink:
    """Another link, with faults. What happens to request number n follows from `seed` and n.

    `restart` gives the link to a cloud that knows nothing any more; without it no cloud starts anew. `seen` counts what
    went wrong.
    """

    def __init__(self, link: Link, faults: Faults, seed: int, restart: Callable[[], Link] | None = None) -> None:
        self.link, self.faults, self.seed, self.restart = link, faults, seed, restart
        self.seen: Counter[str] = Counter()
        self._calls = self._life = 0

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; as `base.Link.call`."""
        self._calls += 1
        chance, faults = Random(f"{self.seed}/{self._calls}"), self.faults
        await self._late(chance)
        if self._happens("lost_before", chance):
            raise LinkDown("the connection failed before the request was sent")
        if self.restart is not None and self._happens("restarted", chance):
            self.link, self._life = self.restart(), self._life + 1
        if self._happens("forgotten", chance) and message.kind in ("verify", "decode"):
            await _all(self.link.call(Message("close", {"session": message.fields.get("session")}), Traffic()))
        if self._happens("sent_twice", chance):
            await _all(self.link.call(message, Traffic()))
        lost = self._happens("lost_after", chance)
        if self._happens("stalled", chance):
            await asyncio.sleep(faults.stall_ms / 1e3)
        life, gone = self._life, False
        async for reply in self.link.call(message, traffic):
            await self._late(chance)
            if life != self._life:
                raise LinkDown("the cloud started anew in the middle")
            gone = gone or (lost and chance.random() < 0.5)
            if not gone:
                yield reply
                if self._happens("told_twice", chance):
                    yield reply
        if lost:
            raise LinkDown("the connection failed before the reply was there")

    async def close(self) -> None:
        """Give the connection back."""
        await self.link.close()

    async def _late(self, chance: Random) -> None:
        if self.faults.late_ms:
            await asyncio.sleep(chance.random() * self.faults.late_ms / 1e3)

    def _happens(self, name: str, chance: Random) -> bool:
        found = chance.random() < float(getattr(self.faults, name))
        self.seen[name] += found
        return found


async def _all(replies: AsyncIterator[Message]) -> None:
    """Let a request take effect whose replies nobody gets."""
    try:
        async for _ in replies:
            continue
    except RemoteError:
        return
