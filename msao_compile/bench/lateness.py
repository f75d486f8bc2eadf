"""How late timers are: where cores do not suffice or others use them, what was seen is the machine's own doing."""

from __future__ import annotations

import threading
import time
from typing import Self

import numpy as np

TIMER_S = 0.01


class Lateness:
    """Watches a timer while a block runs."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lateness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            due_s = time.perf_counter() + TIMER_S
            time.sleep(TIMER_S)
            self._late_ms.append((time.perf_counter() - due_s) * 1e3)

    def figures(self) -> dict[str, float]:
        """Median and 95th percentile, in milliseconds."""
        found = self._late_ms or [0.0]
        return {"p50": float(np.percentile(found, 50)), "p95": float(np.percentile(found, 95))}
