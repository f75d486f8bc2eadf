"""What every link to a cloud is to its user: a request out, replies in, bytes counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from msao_compile.runtime.wire.message import Message


@dataclass
class Traffic:
    """Bytes that crossed during one request."""

    up: int = 0
    down: int = 0


class Link(Protocol):
    """A way to a cloud that serves the same deployment."""

    def call(self, message: Message, traffic: Traffic) -> Iterator[Message]:
        """Send one request and give its replies as they arrive."""
