"""What a user gets wrong in a declaration is said at once, as a ``ConfigError`` that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flotta.errors import ConfigError, InvalidName
from flotta.pool import Backoff, Job, PerKey, PoolOptions, WorkerPool


async def watch(job: Job, mmsi: int) -> None: ...


async def charge(tenant: str) -> None: ...


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": ""}, "key"),
        ({"key": 3}, "template"),
        ({"key": "vessel:{msi}"}, "{mmsi}"),
        ({"key": "{mmsi}", "crashes_reset_s": "5"}, "crashes_reset_s"),
        ({"key": "{mmsi}", "crashes_reset_s": None}, "crashes_reset_s"),
        ({"key": "{mmsi}", "dispatch_timeout_s": "5"}, "dispatch_timeout_s"),
        ({"key": "{mmsi}", "dispatch_timeout_s": float("nan")}, "dispatch_timeout_s"),
        ({"key": "{mmsi}", "backoff": 5}, "backoff"),
    ],
)
def test_a_wrong_option_of_a_job_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WorkerPool("mistakes").job(**options)(watch)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retry": 5}, r"retry .* is 5; allowed: a Retry, such as Retry\(5\)"),
        ({"concurrency": 2}, "concurrency .* PerKey"),
        ({"rate": 100}, "rate .* Rate"),
        ({"unique": True}, "template"),
        ({"concurrency": PerKey("{tenent}")}, "{tenant}"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"result_ttl_s": "5"}, "result_ttl_s"),
        ({"worker_losses_max": 1.5}, "worker_losses_max"),
    ],
)
def test_a_wrong_option_of_a_task_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WorkerPool("mistakes").task(**options)(charge)


@pytest.mark.parametrize("options", [{"delay_s": "5"}, {"timeout_s": "5"}, {"result_ttl_s": [1]}])
def test_a_wrong_option_of_a_call_is_named(options: dict[str, Any]) -> None:
    task = WorkerPool("mistakes").task()(charge)
    with pytest.raises(ConfigError, match=next(iter(options))):
        task.options(**options)


@pytest.mark.parametrize("decorate", [lambda pool: pool.cron("0 3 * * *"), lambda pool: pool.every(30)])
@pytest.mark.parametrize("what", [charge, WorkerPool("mistakes").job(key="{mmsi}")(watch)])
def test_only_tasks_come_round(decorate: Callable[[WorkerPool], Any], what: Any) -> None:
    with pytest.raises(ConfigError, match=r"above @pool\.task"):
        decorate(WorkerPool("mistakes"))(what)


def test_an_interval_is_checked_where_it_is_declared() -> None:
    with pytest.raises(ConfigError, match=r"every_s .* 0\.01 to 31622400 seconds"):
        WorkerPool("mistakes").schedule(every_s="60")(charge)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"0\.1 to 31622400 seconds"):
        WorkerPool("mistakes").every(0)


def test_options_of_the_pool_are_checked() -> None:
    with pytest.raises(ConfigError, match="options"):
        WorkerPool("mistakes", options={"worker_ttl_s": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="client_only"):
        PoolOptions(client_only="no")  # type: ignore[arg-type]
    with pytest.raises(InvalidName):
        WorkerPool(3)  # type: ignore[arg-type]


def test_what_is_right_is_taken() -> None:
    pool = WorkerPool("mistakes", options=PoolOptions(client_only=True))
    pool.job(key="{mmsi}", backoff=Backoff(first_s=0), crashes_reset_s=1, dispatch_timeout_s=0.5)(watch)
    pool.every(0.1)(pool.task(timeout_s=1, result_ttl_s=None, worker_losses_max=0)(tidy))
    assert pool.queues == ("default",)


def tidy(tenant: str = "acme") -> None: ...


def test_a_task_without_brackets_is_told_so() -> None:
    pool: Any = WorkerPool("mistakes")
    with pytest.raises(ConfigError, match=r"charge.*with brackets"):

        @pool.task
        async def charge() -> None: ...
