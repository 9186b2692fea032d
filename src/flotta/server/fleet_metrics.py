"""The statistics of a fleet's parts, in Prometheus' form.

Everything is read from counters that the parts keep anyway, except what only Redis knows of a stream (its length, and
the lag and pending events of its sinks) and of a worker pool (`pool_metrics.py`): that is asked for when somebody
scrapes, all at once, in bounded time, and left out when Redis does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from flotta.fleet import Fleet, in_loop_of, registered
from flotta.server.pool_metrics import PoolFigures, ask_pools, pool_families

if TYPE_CHECKING:
    from flotta.streaming import StreamInfo

__all__ = ["FleetCollector"]

STREAM_INFO_TIMEOUT_S: Final = 1.0

_Family = GaugeMetricFamily | CounterMetricFamily

_POOL_GAUGES: Final = ("size", "size_max", "size_min", "idle", "in_use", "connecting", "waiting", "waiting_peak")
_POOL_COUNTERS: Final = (
    "acquired", "waited", "timeouts", "refused", "connects", "failures", "broken", "retired", "wait_s",
)  # fmt: skip
_LINK_GAUGES: Final = ("connected", "in_flight", "waiting")
_LINK_COUNTERS: Final = ("commands", "connections", "failed_attempts", "bytes_sent", "bytes_received")
_MAP_COUNTERS: Final = ("applied", "gaps", "junk", "loads", "load_failures", "lost")


@final
class FleetCollector:
    """Collects from every fleet of this process that runs."""

    def __init__(self) -> None:
        self._streams: dict[str, StreamInfo] = {}
        self._pools: dict[str, PoolFigures] = {}

    async def prepare(self) -> None:
        """Asks Redis about the streams and pools. Call it before each scrape; never raises."""
        _, self._pools = await asyncio.gather(self._ask_streams(), ask_pools(_running()))

    async def _ask_streams(self) -> None:
        asked = [(f, stream) for f in _running() for stream in f.streams]
        answers = await asyncio.gather(
            *(asyncio.wait_for(in_loop_of(f, stream.info()), STREAM_INFO_TIMEOUT_S) for f, stream in asked),
            return_exceptions=True,
        )
        self._streams = {
            stream.name: info
            for (_, stream), info in zip(asked, answers, strict=True)
            if not isinstance(info, BaseException)
        }

    def collect(self) -> Iterator[Metric]:
        fleets = _running()
        yield from _instances(fleets)
        links = [([fleet.instance.service], fleet.redis.link.stats) for fleet in fleets]
        yield from _of("redis", links, ["service"], _LINK_GAUGES, _LINK_COUNTERS)
        hubs = [([fleet.instance.service], fleet.redis.hub) for fleet in fleets]
        yield from _of("redis_hub", hubs, ["service"], ("connected",), ())
        pools = [([fleet.instance.service], fleet.postgres.stats) for fleet in fleets if fleet.has_postgres]
        yield from _of("postgres_pool", pools, ["service"], _POOL_GAUGES, _POOL_COUNTERS)
        yield from _maps(fleets)
        yield from self._stream_families()
        yield from pool_families(fleets, self._pools)
        yield from _realtime(fleets)
        yield from _background(fleets)

    def _stream_families(self) -> Iterator[Metric]:
        length = GaugeMetricFamily("flotta_stream_length", "Events kept in the stream.", labels=["stream"])
        added = CounterMetricFamily("flotta_stream_added", "Events ever added, by every instance.", labels=["stream"])
        lag = GaugeMetricFamily("flotta_stream_sink_lag", "Events that a sink has not been given.", labels=_SINK)
        pending = GaugeMetricFamily("flotta_stream_sink_pending", "Events given and not acked.", labels=_SINK)
        consumers = GaugeMetricFamily("flotta_stream_sink_consumers", "Consumers of a sink.", labels=_SINK)
        kept = [([name], info.retention) for name, info in self._streams.items() if info.retention is not None]
        for name, info in self._streams.items():
            length.add_metric([name], info.length)
            if info.added is not None:
                added.add_metric([name], info.added)
            for sink, facts in info.sinks.items():
                pending.add_metric([name, sink], facts.pending)
                consumers.add_metric([name, sink], facts.consumers)
                if facts.lag is not None:
                    lag.add_metric([name, sink], facts.lag)
        yield from (length, added, lag, pending, consumers)
        yield from _of("stream", kept, ["stream"], (), ("trimmed", "dropped", "refused"))


_SINK: Final = ["stream", "sink"]


def _running() -> list[Fleet]:
    """In STARTED or DRAINING: its parts can be read."""
    return [fleet for fleet in registered() if fleet.running]


def _instances(fleets: Iterable[Fleet]) -> Iterator[Metric]:
    family = InfoMetricFamily("flotta_instance", "Who this process is; its id is in every series.")
    for fleet in fleets:
        me = fleet.instance
        labels = {"service": me.service, "region": me.region, "incarnation": me.incarnation}
        family.add_metric([], labels)
    yield family


def _maps(fleets: Iterable[Fleet]) -> Iterator[Metric]:
    handles = [handle for fleet in fleets for handle in fleet.maps]
    keys = GaugeMetricFamily("flotta_map_keys", "Keys of the local copy.", labels=["map"])
    stale = GaugeMetricFamily("flotta_map_stale", "1 while writes may have been missed.", labels=["map"])
    revision = GaugeMetricFamily("flotta_map_revision", "Revision of the local copy.", labels=["map"])
    for handle in handles:
        keys.add_metric([handle.name], len(handle))
        stale.add_metric([handle.name], handle.stale)
        revision.add_metric([handle.name], handle.revision)
    yield from (keys, stale, revision)
    yield from _of("map", [([handle.name], handle.stats) for handle in handles], ["map"], (), _MAP_COUNTERS)


def _realtime(fleets: Iterable[Fleet]) -> Iterator[Metric]:
    servers = [server for fleet in fleets for server in fleet.realtime_servers]
    if servers:  # what is not used is not imported
        from flotta.realtime.metrics import realtime_families  # noqa: PLC0415

        yield from realtime_families(servers)


def _background(fleets: Iterable[Fleet]) -> Iterator[Metric]:
    tasks = [([task.name], task) for fleet in fleets for task in fleet.background_tasks]
    yield from _of("background", tasks, ["task"], ("running",), ("crashes",))


def _of(
    part: str, rows: list[tuple[list[str], Any]], labels: list[str], gauges: Iterable[str], counters: Iterable[str]
) -> Iterator[Metric]:
    """One family for each named attribute of the statistics in ``rows``."""
    for kind, names in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name in names:
            family: _Family = kind(f"flotta_{part}_{name}", f"{name} of {part}".replace("_", " "), labels=labels)
            for values, stats in rows:
                family.add_metric(values, float(getattr(stats, name)))
            yield family
