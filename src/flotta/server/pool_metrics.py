"""The statistics of worker pools, in Prometheus' form.

Two kinds of figures, and their names say which: what this process has done since it started (``flotta_pool_*`` but for
the following), and what the whole pool is at this moment (``flotta_pool_fleet_*``), which every process of it reports
alike: take their maximum, not their sum. The second kind is asked of Redis for each scrape, in bounded time.

Keys are labels only where they stand out, ten at most: a key of its own for each job would drown the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from flotta.fleet import Fleet, in_loop_of

if TYPE_CHECKING:
    from flotta.pool import NodeStats, WorkerPool
    from flotta.pool.inspection import PoolSummary, TaskFigures

__all__ = ["PoolFigures", "ask_pools", "pool_families"]

ASK_TIMEOUT_S: Final = 1.0

_GAUGES: Final = {"running": "Jobs that run here, or wait here after a crash.", "workers": "Workers of this process."}
_COUNTERS: Final = {
    "dispatched": "Dispatches from here that a worker has started.",
    "refused": "Dispatches from here that raised.",
    "started": "Runs of jobs begun here: first ones, later attempts and ones taken over.",
    "failed": "Jobs that ended here before they were ready.",
    "finished": "Jobs that returned here.",
    "stopped": "Jobs that ended here because they were stopped.",
    "crashed": "Runs of jobs that raised here.",
    "dead": "Jobs that became dead letters here.",
    "moved": "Jobs handed over from here.",
    "stayed": "Jobs that did not end in time to be handed over and stayed.",
    "declined": "Jobs given back because nothing here knows their kind.",
    "fenced": "Runs that this process lost to another owner.",
    "stuck": "Jobs that had not ended when their time to stop was over.",
    "leases_lost": "Leases that this process lost.",
    "notified": "Notifications sent from here.",
    "noted": "Notifications that reached jobs here.",
}
_FLEET_GAUGES: Final = {
    "workers": "Workers of the pool whose lease is valid.",
    "jobs": "Jobs of the pool.",
    "queued": "Jobs that no worker has claimed yet.",
    "parked": "Jobs that have no worker to wait for.",
    "tasks_waiting": "Tasks that are not done and do not run.",
    "tasks_running": "Tasks that run.",
    "dead": "Dead letters of jobs and tasks.",
}
_TASK_OUTCOMES: Final = ("enqueued", "done", "failed", "cancelled", "retried", "lost", "redriven")


@final
@dataclass(frozen=True, slots=True)
class PoolFigures:
    """What Redis knows of a pool."""

    summary: PoolSummary
    tasks: TaskFigures


async def ask_pools(fleets: Iterable[Fleet]) -> dict[str, PoolFigures]:
    """By the pool's name; those that do not answer in time are left out. Never raises."""
    asked = [(f, pool) for f in fleets for pool in f.pools if pool.started]
    answers = await asyncio.gather(
        *(asyncio.wait_for(in_loop_of(f, _ask(pool)), ASK_TIMEOUT_S) for f, pool in asked), return_exceptions=True
    )
    return {
        pool.name: figures
        for (_, pool), figures in zip(asked, answers, strict=True)
        if not isinstance(figures, BaseException)
    }


async def _ask(pool: WorkerPool) -> PoolFigures:
    from flotta.pool.inspection import PoolView  # noqa: PLC0415 - a part that is not used is not imported

    view = PoolView(pool.node.redis, pool.name)
    return PoolFigures(await view.summary(), await view.task_figures(pool.queues))


def pool_families(fleets: Iterable[Fleet], figures: Mapping[str, PoolFigures]) -> Iterator[Metric]:
    """Everything of the pools of ``fleets``."""
    stats = {pool.name: pool.stats for fleet in fleets for pool in fleet.pools if pool.started}
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"flotta_pool_{name}", text, labels=["pool"])
        for pool, counts in stats.items():
            gauge.add_metric([pool], getattr(counts, name))
        yield gauge
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"flotta_pool_{name}", text, labels=["pool"])
        for pool, counts in stats.items():
            counter.add_metric([pool], getattr(counts, name))
        yield counter
    yield _latency(stats)
    yield _keys("failing", "Crashes and failed starts of the jobs that fail most often here.", stats)
    yield _keys("busy", "Dispatches and notifications of the keys that dominate them from here.", stats)
    yield from _fleet_families(figures)


def _latency(stats: Mapping[str, NodeStats]) -> Metric:
    from flotta.pool.stats import LATENCY_BUCKETS_S  # noqa: PLC0415

    bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
    text = "Seconds from a dispatch until a worker had started the job."
    family = HistogramMetricFamily("flotta_pool_dispatch_seconds", text, labels=["pool"])
    for pool, counts in stats.items():
        total, buckets = 0, []
        for bound, count in zip(bounds, counts.latency_buckets, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([pool], buckets=buckets, sum_value=counts.latency_sum_s)
    return family


def _keys(which: str, text: str, stats: Mapping[str, NodeStats]) -> Metric:
    family = GaugeMetricFamily(f"flotta_pool_{which}_key", text, labels=["pool", "key"])
    for pool, counts in stats.items():
        for key, number in getattr(counts, f"{which}_keys"):
            family.add_metric([pool, key], number)
    return family


def _fleet_families(figures: Mapping[str, PoolFigures]) -> Iterator[Metric]:
    for name, text in _FLEET_GAUGES.items():
        family = GaugeMetricFamily(f"flotta_pool_fleet_{name}", text, labels=["pool"])
        for pool, known in figures.items():
            family.add_metric([pool], getattr(known.summary, name))
        yield family
    due = GaugeMetricFamily("flotta_pool_fleet_tasks_due", "Tasks that wait for their time.", labels=["pool"])
    ready = GaugeMetricFamily("flotta_pool_fleet_tasks_ready", "Tasks that may run now.", labels=["pool", "queue"])
    tasks = CounterMetricFamily("flotta_pool_fleet_tasks", "What became of tasks.", labels=["pool", "outcome"])
    for pool, known in figures.items():
        due.add_metric([pool], known.tasks.due)
        for queue, length in known.tasks.queues.items():
            ready.add_metric([pool, queue], length)
        for outcome in _TASK_OUTCOMES:
            tasks.add_metric([pool, outcome], known.tasks.totals.get(outcome, 0))
    yield from (due, ready, tasks)
