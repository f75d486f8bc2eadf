"""What a cloud server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from msao_compile.runtime.wire.contract import REQUESTS

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server; nothing is shared between two in one process."""

    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "msao_requests", "Requests that ended, by outcome.", ("operation", "outcome"), registry=self._registry
        )
        self._seconds = Histogram(
            "msao_request_seconds", "From a request's arrival to its last reply.", ("operation",),
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._bytes = Counter("msao_bytes", "Bytes of messages, by direction.", ("direction",), registry=self._registry)
        self._active = Gauge("msao_requests_active", "Requests that run now.", registry=self._registry)
        self._registry.register(_Told(gauges))

    def arrived(self, size_bytes: int) -> None:
        """A request came."""
        self._active.inc()
        self._bytes.labels("in").inc(size_bytes)

    def sent(self, size_bytes: int) -> None:
        """A reply went out."""
        self._bytes.labels("out").inc(size_bytes)

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """A request ended; an operation that is not known counts as `unknown`."""
        known = operation if operation in REQUESTS else "unknown"
        self._active.dec()
        self._requests.labels(known, outcome).inc()
        self._seconds.labels(known).observe(seconds)

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self._registry)


class _Told(Collector):
    """What the handler shows, read when the page is asked for."""

    def __init__(self, gauges: Callable[[], Mapping[str, float]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"msao_cloud_{name}", f"As the scheduler tells: {name}.", value=value)
