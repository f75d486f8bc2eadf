"""Device memory while the check runs, by the driver: the same measure for every peer, its CUDA context included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Event, Thread
from types import TracebackType

from msao_compile.errors import StageError
from msao_compile.runtime.backends import cuda

EVERY_S = 0.05


class Watch:
    """Samples of the memory in use on the first card, in a thread; none where there is no driver to ask.

    This process holds a context of its own from before the first sample on, so it is in all of them alike.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._driver, self._stop = cuda.probe(), Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        driver = self._driver
        if isinstance(driver, str):
            return
        try:
            driver.use()
            while not self._stop.wait(EVERY_S):
                free, total = driver.memory()
                self.samples.append((time.time(), total - free))
        except StageError:
            return  # a card that is lost: what was sampled before stays


def peak_bytes(samples: Sequence[tuple[float, int]], window: Sequence[float]) -> int | None:
    """The most in use within a window of time, less the least ever seen; None where nothing was sampled then."""
    inside = [used for moment, used in samples if window[0] <= moment <= window[1]]
    return max(inside) - min(used for _, used in samples) if inside else None
