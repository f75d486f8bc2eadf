"""What a request gives back: text, tokens, the route it took and where its time and bytes went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Timing:
    """Wall-clock account of one answer; `modules_ms` covers the time to first token; one token has no `tpot_ms`."""

    ttft_ms: float
    tpot_ms: float | None
    total_ms: float
    modules_ms: dict[str, float]
    bytes_up: int
    bytes_down: int


@dataclass
class Extent:
    """How long a request is, once that is known: tokens of its prompt, and at most so many new ones."""

    prompt_tokens: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Answer:
    """One finished answer. `verified` says that every token is the cloud model's own.

    `prompt_tokens` is None where the cloud did not say; `finish` is `length` where the limit ended it. `drafts`, of a
    route that speculates, counts those `drafted` and `accepted`, the `rounds`, and tokens that stayed `unverified`.
    `alone`: the edge was sure of its own answer, by what was fitted, and not all of it was verified. `payload`: what of
    its pictures crossed, where a cloud was asked.
    """

    text: str
    token_ids: tuple[int, ...]
    route: str
    reason: str
    verified: bool
    timing: Timing
    drafts: dict[str, int] | None = None
    prompt_tokens: int | None = None
    finish: Literal["stop", "length"] = "stop"
    alone: bool = False
    payload: Literal["drop", "thumbnail", "regions", "full"] | None = None


@dataclass(frozen=True)
class Piece:
    """What one token adds to a streamed answer, maybe nothing yet; the last piece carries the whole answer."""

    text: str
    answer: Answer | None = None


@dataclass
class Clock:
    """Collects module times until the first token, then token times."""

    started: float = field(default_factory=time.perf_counter)
    modules_ms: dict[str, float] = field(default_factory=dict)
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    @contextmanager
    def module(self, name: str) -> Iterator[None]:
        """Add the time of the block to a module, unless the first token is out already."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.first is None:
                self.modules_ms[name] = self.modules_ms.get(name, 0.0) + (time.perf_counter() - start) * 1e3

    def token(self) -> None:
        """A token is known now."""
        self.last = time.perf_counter()
        self.tokens += 1
        if self.first is None:
            self.first = self.last

    def timing(self, bytes_up: int = 0, bytes_down: int = 0) -> Timing:
        """The account so far: TTFT (of an empty answer its end), and TPOT = (last - first) / (tokens - 1)."""
        first = self.first if self.first is not None else time.perf_counter()
        tpot_ms = (self.last - first) / (self.tokens - 1) * 1e3 if self.tokens > 1 else None
        total = max(self.last, first) - self.started
        return Timing((first - self.started) * 1e3, tpot_ms, total * 1e3, dict(self.modules_ms), bytes_up, bytes_down)
