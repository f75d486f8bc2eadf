"""A cloud in this very process: everything still crosses as bytes, so contract and byte counts are the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msao_compile.runtime.wire.base import Traffic
from msao_compile.runtime.wire.message import Message, pack, unpack


class Loopback:
    """A link to a handler in this process."""

    def __init__(self, handle: Callable[[Message], Iterator[Message]]) -> None:
        self.handle = handle

    def call(self, message: Message, traffic: Traffic) -> Iterator[Message]:
        """Send one request and give its replies as they arrive."""
        sent = pack(message)
        traffic.up += len(sent)
        for reply in self.handle(unpack(sent)):
            back = pack(reply)
            traffic.down += len(back)
            yield unpack(back)
