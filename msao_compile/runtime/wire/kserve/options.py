"""How a link to a cloud is made: what it shows and trusts, how much it sends, how long it waits."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from msao_compile.errors import DeadlineExceeded, InputError, LinkDown
from msao_compile.runtime.wire.message import Message

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class LinkOptions:
    """What a link needs beside the address."""

    model: str | None = None
    """The served model's name; None where only one is served."""
    token: str | None = field(default=None, repr=False)
    roots: Path | None = None
    """PEM file of the certificates to trust instead of the system's."""
    message_bytes: int = 64 << 20
    """So large a message is sent or taken at most."""
    connect_s: float = 5.0
    margin_s: float = 1.0
    """The cloud has `deadline_ms` for a request; its answer may take so much longer to arrive."""
    silence_s: float = 120.0
    """Between two replies of a request; a cloud that is longer silent counts as gone."""
    patience_s: float = 30.0
    """An answer waits so long for its next token, all tries together, before the edge finishes it unverified where its
    route allows that; three times so long where nobody else can finish it."""
    keepalive_s: float = 20.0
    """How often a quiet gRPC connection is tried; servers take less than 5 for an attack."""

    def __post_init__(self) -> None:
        """Refuse a token that no header can carry, before gRPC and HTTP each fail in a way of their own.

        Raises:
            InputError: it is empty, or holds blanks, line ends or other than ASCII.
        """
        if self.token is not None and not (self.token and all("!" <= letter <= "~" for letter in self.token)):
            raise InputError(
                "the token to show the cloud is empty, or has blanks, line ends or letters beyond ASCII: give one token"
            )

    def read_roots(self) -> bytes | None:
        """The certificates to trust.

        Raises:
            InputError: the file cannot be read, or holds none.
        """
        if self.roots is None:
            return None
        try:
            content = self.roots.read_bytes()
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:  # gRPC would only say that nobody answers
            raise InputError(
                f"{self.roots}: it is no PEM file of certificates: give one that holds those to trust"
            ) from error
        except OSError as error:
            raise InputError(f"{self.roots}: the certificates to trust cannot be read ({error.strerror})") from error
        return content

    def headers(self) -> dict[str, str]:
        """What shows the token."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


class Patience:
    """How long one request waits: its deadline and a margin, and never longer than `silence_s` for one reply."""

    def __init__(self, message: Message, options: LinkOptions) -> None:
        allowed = message.fields.get("deadline_ms")
        self._silence_s = options.silence_s
        self._until = (
            time.perf_counter() + allowed / 1e3 + options.margin_s if isinstance(allowed, int | float) else None
        )

    async def reply(self, arriving: Awaitable[Thing]) -> Thing:
        """What arrives.

        Raises:
            DeadlineExceeded: the request's time is over. LinkDown: nothing came for too long.
        """
        left = self._silence_s if self._until is None else self._until - time.perf_counter()
        try:
            async with asyncio.timeout(min(left, self._silence_s)):
                return await arriving
        except TimeoutError as error:
            if left <= self._silence_s and self._until is not None:
                raise DeadlineExceeded("the cloud did not answer within the request's deadline") from error
            raise LinkDown(f"the cloud was silent for {self._silence_s:g} s: it may have gone") from error
