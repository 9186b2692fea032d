"""The statistics of realtime servers in Prometheus' form, for any program. Needs ``prometheus-client``, of
``flotta[server]``.

::

    from prometheus_client import REGISTRY
    from flotta.realtime.metrics import RealtimeCollector

    REGISTRY.register(RealtimeCollector(sio))

``flotta run`` does it by itself. Every series of a server has its path as a label; everything is read from counters
that the server keeps anyway, when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, final

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ModuleNotFoundError as error:
    told = 'prometheus-client is missing: pip install "flotta[server]"'
    raise ModuleNotFoundError(told, name=error.name) from error

from flotta.realtime.server import Server, ServerStats

__all__ = ["RealtimeCollector", "realtime_families"]

_Row = tuple[list[str], Any]

_SERVER_GAUGES: Final = ("connections", "connections_max", "sockets", "rooms", "handlers_running")
_SERVER_COUNTERS: Final = (
    "opened", "refused", "broadcasts", "delivered", "volatile_dropped", "filtered", "handlers_failed",
)  # fmt: skip
_ADAPTER_COUNTERS: Final = ("published", "publish_lost", "received", "junk", "gaps")
_RELAY_COUNTERS: Final = ("asked", "served", "moved_here", "moved_away", "junk")
_USER_REFUSALS: Final = ("revoked", "full", "expired")


@final
class RealtimeCollector:
    """Collects from ``servers``. It also gives ``websocket_connections``, their clients together."""

    def __init__(self, *servers: Server) -> None:
        self._servers = servers

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        connections = sum(server.stats.connections for server in self._servers)
        yield GaugeMetricFamily("websocket_connections", "Open WebSocket and realtime connections.", connections)
        yield from realtime_families(self._servers)


def realtime_families(servers: Iterable[Server]) -> Iterator[Metric]:
    """The families of ``servers``, all but ``websocket_connections``."""
    found = [([server.options.path], server, server.stats) for server in servers]
    rows: list[_Row] = [(labels, stats) for labels, _, stats in found]
    yield from _of("realtime", rows, _SERVER_GAUGES, _SERVER_COUNTERS)
    unsent = GaugeMetricFamily("flotta_realtime_unsent_bytes", "Bytes that wait for clients to read.", labels=["path"])
    for labels, server, _ in found:
        unsent.add_metric(labels, server.unsent_bytes)
    yield unsent
    yield _by_reason("ended", "Connections ended, by reason.", [(labels, stats.ended) for labels, _, stats in found])
    refusals = [(labels, stats.refusals) for labels, _, stats in found]
    yield _by_reason("refusals", "Requests that opened no session, by reason.", refusals)
    yield from _people([(labels, stats) for labels, _, stats in found])
    adapters: list[_Row] = [(labels, stats.adapter) for labels, _, stats in found if stats.adapter is not None]
    yield from _of("realtime_adapter", adapters, ("connected", "in_flight"), _ADAPTER_COUNTERS)
    yield _lag(adapters)
    relays: list[_Row] = [(labels, stats.relay) for labels, _, stats in found if stats.relay is not None]
    yield from _of("realtime_relay", relays, ("waiting", "tunnels"), _RELAY_COUNTERS)


def _people(rows: Sequence[tuple[list[str], ServerStats]]) -> Iterator[Metric]:
    people: list[_Row] = [(labels, stats.people) for labels, stats in rows]
    users = GaugeMetricFamily("flotta_realtime_users", "Users with a socket on this instance.", labels=["path"])
    for labels, stats in people:
        users.add_metric(labels, stats.users)
    yield users
    refused = [
        (labels, {reason: getattr(stats, f"refused_{reason}") for reason in _USER_REFUSALS}) for labels, stats in people
    ]
    yield _by_reason("users_refused", "Sockets whose user may not come in, by reason.", refused)
    registries: list[_Row] = [(labels, stats.registry) for labels, stats in people if stats.registry is not None]
    yield from _of("realtime_presence", registries, ("entries", "waiting"), ("reaped", "renewed", "lost"))


def _lag(adapters: Sequence[_Row]) -> Metric:
    lag = GaugeMetricFamily("flotta_realtime_adapter_lag_seconds", "How far the reader is behind.", labels=["path"])
    for labels, stats in adapters:
        lag.add_metric(labels, stats.lag_s)
    return lag


def _by_reason(name: str, doc: str, rows: Iterable[tuple[list[str], dict[str, int]]]) -> Metric:
    family = CounterMetricFamily(f"flotta_realtime_{name}", doc, labels=["path", "reason"])
    for labels, counts in rows:
        for reason, count in counts.items():
            family.add_metric([*labels, str(reason)], count)
    return family


def _of(part: str, rows: Sequence[_Row], gauges: Iterable[str], counters: Iterable[str]) -> Iterator[Metric]:
    """One family for each named attribute of the statistics in ``rows``."""
    for kind, names in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name in names:
            family = kind(f"flotta_{part}_{name}", f"{name} of {part}".replace("_", " "), labels=["path"])
            for labels, stats in rows:
                family.add_metric(labels, float(getattr(stats, name)))
            yield family
