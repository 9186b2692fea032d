"""What one instance measures, in Prometheus' form.

Behind a shared port a scrape reaches one of N workers and the next one another, so every series carries the label
`INSTANCE_LABEL`: each worker's counters stay their own, and sums over the label are right. (Not `instance`, which the
scraper sets itself.)

Counting is on the path of every request, so it is a dictionary and a bisection, nothing more; names, labels and text
are made when somebody asks. The method of a request is a label only if it is a method that HTTP knows, since a client
may send any word.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final, final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from flotta.fleet import registered
from flotta.server.watchdog import LoopWatchdog

__all__ = [
    "DURATION_BUCKETS_S",
    "INSTANCE_LABEL",
    "Metrics",
    "RequestMetrics",
    "WorkerCollector",
    "realtime_connections",
]

INSTANCE_LABEL: Final = "instance_id"
DURATION_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


@final
class RequestMetrics:
    """Counts HTTP requests."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.total = 0
        self.by_method_status: dict[tuple[str, int], int] = defaultdict(int)
        self.buckets = [0] * (len(DURATION_BUCKETS_S) + 1)
        self.duration_sum_s = 0.0

    def count(self, method: str, status: int, duration_s: float) -> None:
        self.total += 1
        self.by_method_status[method if method in _METHODS else "OTHER", status] += 1
        self.buckets[bisect_left(DURATION_BUCKETS_S, duration_s)] += 1
        self.duration_sum_s += duration_s

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("flotta_http_requests", "HTTP requests answered.", labels=["method", "status"])
        for (method, status), count in self.by_method_status.items():
            requests.add_metric([method, str(status)], count)
        yield requests
        yield GaugeMetricFamily("flotta_http_requests_in_flight", "HTTP requests being served.", self.in_flight)
        yield _histogram(
            "flotta_http_request_duration_seconds",
            "Time to serve an HTTP request.",
            self.buckets,
            self.duration_sum_s,
        )


def _histogram(name: str, doc: str, counts: Iterable[int], total: float) -> Metric:
    cumulative, buckets = 0, []
    for bound, count in zip([*map(str, DURATION_BUCKETS_S), "+Inf"], counts, strict=True):
        cumulative += count
        buckets.append((bound, cumulative))
    return HistogramMetricFamily(name, doc, buckets=buckets, sum_value=total)


def realtime_connections() -> int:
    """Clients of every realtime server of this process."""
    return sum(server.stats.connections for fleet in registered() for server in fleet.realtime_servers)


@final
class WorkerCollector:
    """The event loop and the connections."""

    def __init__(self, gate: Any, watchdog: LoopWatchdog) -> None:
        self._gate = gate
        self._watchdog = watchdog

    def collect(self) -> Iterator[Metric]:
        connections = self._gate.websockets + realtime_connections()
        yield GaugeMetricFamily("websocket_connections", "Open WebSocket and realtime connections.", connections)
        yield GaugeMetricFamily("flotta_loop_lag_seconds", "How late the event loop runs.", self._watchdog.lag_s)
        yield CounterMetricFamily(
            "flotta_loop_blocked", "Times that the event loop was blocked for too long.", self._watchdog.blocked_total
        )


@final
class Metrics:
    """The registry of one worker, whose id is a label of every series."""

    def __init__(self, collectors: Iterable[Any], instance_id: str) -> None:
        self._instance_id = instance_id
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        for collector in collectors:
            self._registry.register(collector)

    def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and body for a scraper that accepts ``accept``."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self)

    def collect(self) -> Iterator[Metric]:
        """Everything that is registered, with the label."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={INSTANCE_LABEL: self._instance_id, **sample.labels})
                for sample in family.samples
            ]
            yield family
