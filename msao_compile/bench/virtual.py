"""An event loop whose time is counted, not waited for: emulated delays cost nothing, and every run is the same.

Coroutines of edge, cloud and link run as they are. Whenever all of them wait, the clock jumps to the next deadline.
What computes (a decoder's step) takes no time of this clock; an emulated device says itself how long it took.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from msao_compile.errors import StageError

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Waiting is moving the loop's clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StageError("virtual time stands still: every task waits for something that nobody will do")
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, which begins at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._jump.now_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives, in virtual time.

    Raises:
        StageError: it waits for what never comes.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
