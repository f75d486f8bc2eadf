"""How much the server takes on: sizes, and the requests that are inside at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from msao_compile.runtime.serve.edge.errors import Fault, Refusal

REMEMBERS = 0.2
"""The weight of the newest request in the usual time of one."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. `requests` are those inside at once: each model answers one, the others wait in order."""

    body_bytes: int = 32 * 2**20
    pixels: int = 25_000_000
    pictures: int = 8
    requests: int = 8
    deadline_s: float = 120.0
    drain_s: float = 30.0


class Door:
    """Counts the requests inside and refuses more than fit; while it drains it refuses all."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.inside = 0
        self.draining = False
        self._usual_s = 1.0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """One request is inside for as long as the block runs.

        Raises:
            Refusal: 429 when full, 503 when draining, each with when to try again.
        """
        if self.draining:
            said = "this server is shutting down: try again when it is back"
            raise Refusal(Fault(503, said, code="shutting_down", retry_after_s=5))
        if self.inside >= self.requests:
            wait_s = max(1, math.ceil(self._usual_s * self.inside / 2))
            said = f"this server is busy with {self.inside} requests: try again in {wait_s} s"
            raise Refusal(Fault(429, said, code="server_busy", retry_after_s=wait_s))
        self.inside += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self.inside -= 1
            self._usual_s += REMEMBERS * (time.perf_counter() - start - self._usual_s)
