"""A cloud in this very process: everything still crosses as bytes, so contract and byte counts are the real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msao_compile.errors import LinkDown
from msao_compile.runtime.wire.base import Handler, Traffic
from msao_compile.runtime.wire.contract import raise_fault
from msao_compile.runtime.wire.message import Message, pack, unpack


class Loopback:
    """A link to a handler in this process."""

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self._open = True

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Send one request and give its replies as they arrive; as `base.Link.call`."""
        if not self._open:
            raise LinkDown("the link is closed: open another")
        sent = pack(message)
        traffic.up += len(sent)
        async for reply in self.handle(unpack(sent)):
            back = pack(reply)
            traffic.down += len(back)
            answer = unpack(back)
            raise_fault(answer)
            yield answer

    async def close(self) -> None:
        """Give the connection back."""
        self._open = False
