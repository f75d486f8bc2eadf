"""What every link to a cloud is to its user: a request out, replies in, bytes counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from msao_compile.runtime.wire.message import Message

Handler = Callable[[Message], AsyncIterator[Message]]
"""What serves requests: an async generator of replies that raises nothing; a fault is its last reply, `error`.

Closing it early cancels the request.
"""


@dataclass
class Traffic:
    """Bytes that crossed during one answer, and round trips that were seen."""

    up: int = 0
    down: int = 0


class Link(Protocol):
    """A way to a cloud that serves the same deployment; one link carries many requests at once."""

    def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; ends after the last, an `error` raises.

        Replies to different requests may come in any order. Closing the iterator early cancels the request.

        Raises:
            RemoteError: as `contract.raise_fault`; LinkDown where the connection fails.
            InputError: the cloud says that the request was not right.
        """

    async def close(self) -> None:
        """Give the connection back; further calls raise LinkDown."""
