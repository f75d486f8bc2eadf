"""What is known of a link: moving averages of rate and round trip, read with pessimism, and less sure as they age."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WEIGHT = 0.3
"""Of a new observation in the moving averages."""
CAUTION = 1.0
"""Standard deviations that an estimate keeps to the safe side."""
STALE_MS = 2000.0
"""After so long without news caution grows by as much again for each such span."""


@dataclass
class Average:
    """An exponentially weighted mean and variance."""

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take in one observation (West 1979; Finch 2009, "Incremental calculation of weighted mean and variance")."""
        if self.count == 0:
            self.mean = value
        else:
            difference = value - self.mean
            self.mean += WEIGHT * difference
            self.variance = (1 - WEIGHT) * (self.variance + WEIGHT * difference * difference)
        self.count += 1

    def off(self, deviations: float) -> float:
        """The mean and so many standard deviations."""
        return self.mean + deviations * math.sqrt(self.variance)


@dataclass(frozen=True)
class LinkEstimate:
    """A link as it may be counted on: kbit/s (bits per millisecond), milliseconds, and the share of failed calls."""

    up_kbps: float
    rtt_ms: float
    failing: float = 0.0

    def up_ms(self, size_bytes: float) -> float:
        """Until so many bytes are there: 8 l / B + RTT / 2."""
        return 8 * size_bytes / self.up_kbps + self.rtt_ms / 2


@dataclass
class LinkState:
    """One link's history. Times are milliseconds of one clock that never goes back."""

    rtt: Average = field(default_factory=Average)
    up: Average = field(default_factory=Average)
    failing: Average = field(default_factory=Average)
    heard_ms: float = -math.inf

    def heard(self, now_ms: float, rtt_ms: float) -> None:
        """A small message came back after so long, the cloud's own time left out."""
        self.rtt.add(max(rtt_ms, 0.01))
        self.failing.add(0.0)
        self.heard_ms = max(now_ms, self.heard_ms)

    def sent(self, size_bytes: int, took_ms: float) -> None:
        """So many bytes took so long on their way up, round trip and the cloud's own time left out."""
        self.up.add(8 * size_bytes / max(took_ms, 0.01))

    def failed(self, now_ms: float) -> None:
        """A call failed."""
        self.failing.add(1.0)
        self.heard_ms = max(now_ms, self.heard_ms)

    def estimate(self, now_ms: float) -> LinkEstimate | None:
        """What may be counted on now; None before anything was heard."""
        if self.rtt.count == 0:
            return None
        age_ms = max(now_ms - self.heard_ms, 0.0)
        caution = CAUTION * (1 + max(age_ms - STALE_MS, 0.0) / STALE_MS)
        slow = self.up.off(-caution) if self.up.count else math.inf
        least = self.up.mean / 10 if self.up.count else math.inf
        failing = min(max(self.failing.mean, 0.0), 1.0) * 0.5 ** (age_ms / STALE_MS)  # so that it is tried again
        return LinkEstimate(max(slow, least), self.rtt.off(caution), failing)
