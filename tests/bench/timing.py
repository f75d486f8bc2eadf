"""Repeated timings: what a peer hands back, and how medians and spreads are taken from it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Times:
    """Milliseconds of one peer, one entry a run; an empty tuple is work that this peer does not do.

    `tpot_ms` is (end-to-end - time to the first token) / (tokens - 1).
    """

    name: str
    versions: dict[str, str]
    prefill_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    token_ids: tuple[int, ...]
    vision_ms: tuple[float, ...] = ()
    ttft_ms: tuple[float, ...] = ()
    checks: dict[str, float | bool | str] = field(default_factory=dict)

    @classmethod
    def read(cls, record: dict[str, Any]) -> Times:
        """From what `hand_back` printed."""
        tuples = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
        return cls(**(record | tuples))

    def joined(self, later: Times) -> Times:
        """The runs of both, in order; checks and tokens of the first, which a later round with others would belie."""
        if later.token_ids != self.token_ids:
            raise ValueError(f"{self.name} gave other tokens in a later round")
        figures = ("prefill_ms", "tpot_ms", "vision_ms", "ttft_ms")
        return replace(self, **{name: getattr(self, name) + getattr(later, name) for name in figures})

    def hand_back(self) -> None:
        """Print as the last line of stdout, where the parent reads it."""
        sys.stdout.write("\n" + json.dumps(asdict(self)) + "\n")


@dataclass(frozen=True)
class Spread:
    """Median and extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: tuple[float, ...]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 2 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def clocked(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `work` gives and its milliseconds."""
    start = time.perf_counter()
    result = work(*arguments)
    return result, (time.perf_counter() - start) * 1e3
