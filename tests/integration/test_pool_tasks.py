"""Short tasks on a real server: what each option of a task promises."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import pytest

from flotta.errors import (
    Closed,
    ConfigError,
    Fenced,
    InvalidName,
    NoResult,
    NotStarted,
    PayloadTooLarge,
    QueueFull,
    ResultTimeout,
    StateError,
    TaskCancelled,
    TaskFailed,
)
from flotta.pool.backoff import Backoff
from flotta.pool.tasks import (
    INJECTED,
    Depends,
    PerKey,
    Rate,
    Retry,
    RetryTask,
    TaskContext,
    TaskRegistry,
    TaskState,
)
from flotta.redis import Redis
from pool_tasks_harness import TaskPool

QUICK = Backoff(first_s=0.01, max_s=0.02)


@pytest.fixture
async def pool(redis: Redis, unique: str) -> AsyncIterator[TaskPool]:
    async with TaskPool(redis, unique) as pool:
        yield pool


class Receipt(msgspec.Struct):
    order_id: int
    tenant: str


async def left_keys(pool: TaskPool) -> set[str]:
    """Keys of the pool without their prefix, but for the documented ones."""
    keys = {key.removeprefix(pool.keys.prefix) for key in [k.decode() async for k in scan(pool)]}
    return {
        key
        for key in keys
        if key not in {"meta", "tasks", "leases", "idle"} and not key.startswith(("inbox:", "replies:"))
    }


async def scan(pool: TaskPool) -> AsyncIterator[bytes]:
    cursor: bytes = b"0"
    while True:
        cursor, keys = await pool.redis.link.call("SCAN", cursor, "MATCH", pool.keys.prefix + "*", "COUNT", 1000)
        for key in keys:
            yield key
        if cursor == b"0":
            return


# --- enqueue, run, result ---------------------------------------------------------------------------------------------


async def test_typed_arguments_and_results_travel(pool: TaskPool):
    @pool.task()
    async def charge(order_id: int, tenant: str = "acme") -> Receipt:
        return Receipt(order_id, tenant)

    await pool.work()
    handle = await charge.enqueue(7)
    assert handle.is_new
    assert await handle.result(5) == Receipt(7, "acme")
    info = await handle.status()
    assert (info.state, info.name, info.queue, info.priority) == (TaskState.DONE, "charge", "default", 5)
    assert await charge.handle(handle.id).result(5) == Receipt(7, "acme")
    assert await charge(1, "here") == Receipt(1, "here")


async def test_arguments_that_do_not_fit_are_refused_where_they_are_given(pool: TaskPool):
    @pool.task()
    async def f(a: int) -> None: ...

    with pytest.raises(TypeError, match="missing"):
        await f.enqueue()
    with pytest.raises(TypeError):
        await f.enqueue("one")
    assert await pool.waiting() == 0


async def test_def_functions_run_in_threads_side_by_side(pool: TaskPool):
    both = threading.Barrier(2, timeout=5)

    @pool.task()
    def f(a: int) -> str:
        both.wait()
        return f"{TaskContext.current().attempt} {threading.current_thread().name.startswith('flotta')} {a}"

    await pool.work()
    one, two = await pool.client.enqueue_many([f.call(1), f.call(2)])
    assert [await one.result(5), await two.result(5)] == ["1 True 1", "1 True 2"]


async def test_many_are_accepted_in_order_and_once(pool: TaskPool):
    seen = []

    @pool.task()
    async def f(n: int) -> None:
        seen.append(n)

    calls = [f.call(n) for n in range(700)]
    handles = await pool.client.enqueue_many(calls)
    again = await pool.client.enqueue_many(calls)
    assert [h.id for h in handles] == [h.id for h in again]
    assert await pool.waiting() == 700
    await pool.work(tasks_max=1)
    await handles[-1].result(10)
    assert seen == list(range(700))


async def test_before_the_start_enqueueing_says_so(unique: str):
    registry = TaskRegistry(unique)

    @registry.task()
    async def f() -> None: ...

    with pytest.raises(NotStarted):
        await f.enqueue()


# --- failing and retrying ---------------------------------------------------------------------------------------------


async def test_without_retry_an_exception_fails_the_task_and_is_told(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        raise ValueError("no such order")

    await pool.work()
    handle = await f.enqueue()
    with pytest.raises(TaskFailed) as caught:
        await handle.result(5)
    error = caught.value
    assert (error.name, error.attempts, error.error_type, error.reason) == ("f", 1, "ValueError", "no such order")
    assert "raise ValueError" in error.trace
    info = await handle.status()
    assert info.state is TaskState.FAILED
    assert info.last_failure is not None
    assert info.last_failure.reason == "no such order"


async def test_retries_until_it_succeeds(pool: TaskPool):
    attempts = []

    @pool.task(retry=Retry(5, backoff=QUICK))
    async def f(context: TaskContext = INJECTED) -> int:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise OSError("not yet")
        return context.attempt

    runner = await pool.work()
    assert await (await f.enqueue()).result(5) == 3
    assert attempts == [1, 2, 3]
    assert runner.stats.retried == 2


async def test_retries_run_out_and_some_exceptions_are_never_retried(pool: TaskPool):
    runs = []

    @pool.task(retry=Retry(2, backoff=QUICK, on=(OSError,), unless=(PermissionError,)))
    async def f(kind: str) -> None:
        runs.append(kind)
        raise {"os": OSError, "perm": PermissionError, "value": ValueError}[kind]("x")

    await pool.work()
    for kind, attempts in (("os", 3), ("perm", 1), ("value", 1)):
        with pytest.raises(TaskFailed) as caught:
            await (await f.enqueue(kind)).result(5)
        assert caught.value.attempts == attempts == runs.count(kind)


async def test_a_task_may_ask_to_be_run_again(pool: TaskPool):
    @pool.task()
    async def f(context: TaskContext = INJECTED) -> int:
        if context.attempt < 4:
            raise RetryTask(after_s=0.01)
        return context.attempt

    @pool.task(retry=Retry(1, backoff=QUICK))
    async def always() -> None:
        raise RetryTask(after_s=0)

    await pool.work()
    assert await (await f.enqueue()).result(5) == 4
    with pytest.raises(TaskFailed, match="RetryTask"):
        await (await always.enqueue()).result(5)


async def test_a_run_past_its_time_is_cancelled_and_has_failed(pool: TaskPool):
    ended = asyncio.Event()

    @pool.task(timeout_s=0.05)
    async def f() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    await pool.work()
    with pytest.raises(TaskFailed, match=r"TimeoutError: not done after 0.05 s"):
        await (await f.enqueue()).result(5)
    assert ended.is_set()
    with pytest.raises(TaskFailed, match=r"after 0.02 s"):
        await (await f.options(timeout_s=0.02).enqueue()).result(5)


async def test_a_function_in_a_thread_is_told_that_its_time_is_over(pool: TaskPool):
    @pool.task(timeout_s=0.05)
    def f() -> bool:
        context = TaskContext.current()
        until = time.monotonic() + 5
        while not context.cancelled and time.monotonic() < until:
            time.sleep(0.005)
        return context.cancelled

    await pool.work()
    assert await (await f.enqueue()).result(5) is True


async def test_a_payload_that_does_not_fit_the_code_fails_without_a_retry(pool: TaskPool):
    @pool.task(name="same", retry=Retry(5))
    async def f(a: int) -> None: ...

    other = TaskRegistry("other")
    other.bind(pool.client)

    @other.task(name="same")
    async def g(b: str) -> None: ...

    await pool.work()
    with pytest.raises(TaskFailed, match="WireError"):
        await (await g.enqueue("x")).result(5)


# --- later, first, once -----------------------------------------------------------------------------------------------


async def test_a_delayed_task_runs_at_its_time(pool: TaskPool):
    @pool.task()
    async def f() -> float:
        return time.time()

    await pool.work()
    begun = time.time()
    one = await f.options(delay_s=0.3).enqueue()
    two = await f.options(at=datetime.now(UTC) + timedelta(seconds=0.2)).enqueue()
    past = await f.options(at=datetime.now(UTC) - timedelta(days=1)).enqueue()
    assert (await one.status()).state is TaskState.DUE
    assert await past.result(5) - begun < 0.19
    assert 0.19 < await two.result(5) - begun < 0.29
    assert 0.29 < await one.result(5) - begun < 0.6
    with pytest.raises(ConfigError):
        f.options(delay_s=1, at=datetime.now(UTC))
    with pytest.raises(ConfigError):
        f.options(at=datetime(2030, 1, 1))  # noqa: DTZ001


async def test_higher_priority_first_then_the_order_of_enqueueing(pool: TaskPool):
    seen = []

    @pool.task()
    async def f(text: str) -> None:
        seen.append(text)

    for text, priority in (("low", 0), ("a", 5), ("b", 5), ("high", 9), ("c", 5)):
        last = await f.options(priority=priority).enqueue(text)
    assert await pool.waiting() == 5
    await pool.work(tasks_max=1)
    while await pool.waiting():
        await asyncio.sleep(0.01)
    await last.result(5)
    await (await f.options(priority=0).enqueue("end")).result(5)
    assert seen == ["high", "a", "b", "c", "low", "end"]


async def test_workers_serve_the_queues_they_were_given(pool: TaskPool):
    @pool.task(queue="mail")
    async def mail() -> str:
        return TaskContext.current().worker

    @pool.task(queue="video")
    async def video() -> str:
        return TaskContext.current().worker

    one = await pool.work(queues=["mail"])
    two = await pool.work(queues=["video"])
    for _ in range(3):
        assert await (await mail.enqueue()).result(5) == one.worker
        assert await (await video.enqueue()).result(5) == two.worker
    assert await (await video.options(queue="mail").enqueue()).result(5) == one.worker


async def test_unique_gives_the_task_that_is_there_until_it_has_ended(pool: TaskPool):
    @pool.task(unique="{order_id}")
    async def f(order_id: int, note: str = "") -> str:
        return note

    first = await f.enqueue(1, "first")
    second = await f.enqueue(1, "second")
    other = await f.enqueue(2, "other")
    assert (first.is_new, second.is_new, other.is_new) == (True, False, True)
    assert second.id == first.id
    await pool.work()
    assert await second.result(5) == "first"
    third = await f.enqueue(1, "third")
    assert third.is_new
    assert await third.result(5) == "third"


async def test_an_id_of_ones_own_is_accepted_once(pool: TaskPool):
    @pool.task()
    async def f(n: int) -> int:
        return n

    one = await f.options(id="order-1").enqueue(1)
    two = await f.options(id="order-1").enqueue(2)
    assert (one.is_new, two.is_new, two.id) == (True, False, "order-1")
    await pool.work()
    assert await two.result(5) == 1
    with pytest.raises(InvalidName):
        f.options(id="a b")


# --- per key, rate ----------------------------------------------------------------------------------------------------


async def test_no_more_of_a_key_run_than_may(pool: TaskPool):
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    @pool.task(concurrency=PerKey("{tenant}", 2))
    async def f(tenant: str) -> None:
        running[tenant] = running.get(tenant, 0) + 1
        most[tenant] = max(most.get(tenant, 0), running[tenant])
        await asyncio.sleep(0.005)
        running[tenant] -= 1

    await pool.work()
    await pool.work()
    handles = await pool.client.enqueue_many([f.call(t) for t in "ab" * 20])
    for handle in handles:
        await handle.result(10)
    assert most == {"a": 2, "b": 2}
    assert await pool.redis.link.call("EXISTS", pool.keys.conc) == 0


async def test_one_at_a_time_keeps_the_order_also_over_retries_and_priorities(pool: TaskPool):
    seen = []

    @pool.task(concurrency=PerKey("{tenant}", 1), retry=Retry(5, backoff=QUICK))
    async def f(tenant: str, n: int, context: TaskContext = INJECTED) -> None:
        if n % 3 == 0 and context.attempt < 3:
            raise OSError
        seen.append(n)

    await pool.work()
    await pool.work()
    handles = [await f.options(priority=n % 10).enqueue("acme", n) for n in range(12)]
    for handle in handles:
        await handle.result(10)
    assert seen == list(range(12))


async def test_runs_are_spaced_by_the_rate_across_workers(pool: TaskPool):
    begun = []

    @pool.task(rate=Rate(20, per_s=1))
    async def f() -> None:
        begun.append(time.monotonic())

    await pool.work()
    await pool.work()
    handles = await pool.client.enqueue_many([f.call() for _ in range(8)])
    for handle in handles:
        await handle.result(10)
    begun.sort()
    assert begun[-1] - begun[0] >= 7 * 0.05 - 0.03


async def test_a_burst_may_begin_at_once_and_keys_have_rates_of_their_own(pool: TaskPool):
    @pool.task(rate=Rate(1, per_s=60, key="{k}", burst=3))
    async def f(k: str) -> None: ...

    await pool.work()
    for k in "ab":
        handles = await pool.client.enqueue_many([f.call(k) for _ in range(4)])
        for handle in handles[:3]:
            await handle.result(5)
        assert (await handles[3].status()).state is TaskState.DUE


# --- results ----------------------------------------------------------------------------------------------------------


async def test_results_expire_or_are_not_kept(pool: TaskPool):
    @pool.task(result_ttl_s=None)
    async def unkept() -> int:
        return 1

    @pool.task()
    async def f() -> int:
        return 1

    await pool.work()
    with pytest.raises(NoResult):
        await (await unkept.enqueue()).result(5)
    short = await f.options(result_ttl_s=0.1).enqueue()
    assert await short.result(5) == 1
    ttl = await pool.redis.link.call("PTTL", pool.keys.task(short.id))
    assert ttl <= 100
    kept = await f.enqueue()
    await kept.result(5)
    assert 590_000 < await pool.redis.link.call("PTTL", pool.keys.task(kept.id)) <= 600_000
    with pytest.raises(NoResult):
        await pool.client.handle("nobody", f.declaration.result).result(1)


async def test_waiting_for_a_result_has_a_limit_and_harms_nothing(pool: TaskPool):
    go = asyncio.Event()

    @pool.task()
    async def f() -> str:
        await go.wait()
        return "x" * 10_000  # longer than what a doorbell carries

    await pool.work()
    handle = await f.enqueue()
    with pytest.raises(ResultTimeout):
        await handle.result(0.05)
    waiting = [asyncio.create_task(handle.result(5)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    assert [len(text) for text in await asyncio.gather(*waiting)] == [10_000] * 3


async def test_progress_is_seen_from_outside(pool: TaskPool):
    shown, go = asyncio.Event(), asyncio.Event()

    @pool.task()
    async def f(context: TaskContext = INJECTED) -> None:
        await context.progress(0.5, "half")
        shown.set()
        await go.wait()

    @pool.task()
    def g() -> None:
        TaskContext.current().progress_from_thread(1.0)

    await pool.work()
    handle = await f.enqueue()
    await shown.wait()
    progress = (await handle.status()).progress
    assert progress is not None
    assert (progress.fraction, progress.text) == (0.5, "half")
    go.set()
    await handle.result(5)
    await (await g.enqueue()).result(5)
    with pytest.raises(StateError):
        TaskContext.current()


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_what_has_not_begun_is_cancelled_for_good(pool: TaskPool):
    ran = []

    @pool.task(concurrency=PerKey("{n}", 1), unique="{n}")
    async def f(n: int) -> None:
        ran.append(n)

    queued = await f.enqueue(1)
    waiting = await f.options(unique="2nd").enqueue(1)
    due = await f.options(delay_s=60).enqueue(2)
    assert (await waiting.status()).state is TaskState.WAITING
    for handle in (waiting, queued, due):
        assert await handle.cancel() is TaskState.CANCELLED
        assert await handle.cancel() is TaskState.CANCELLED
        with pytest.raises(TaskCancelled):
            await handle.result(5)
    assert await pool.waiting() == 0
    await pool.work()
    assert (await f.enqueue(1)).is_new
    await (await f.options(unique="3rd").enqueue(3)).result(5)
    assert ran == [1, 3]
    with pytest.raises(NoResult):
        await pool.client.cancel("nobody")


async def test_a_running_task_is_cancelled_by_its_worker(pool: TaskPool):
    begun, ended = asyncio.Event(), asyncio.Event()

    @pool.task(retry=Retry(5))
    async def f() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    runner = await pool.work()
    handle = await f.enqueue()
    await begun.wait()
    assert await handle.cancel() is TaskState.RUNNING
    with pytest.raises(TaskCancelled):
        await handle.result(5)
    assert ended.is_set()
    assert runner.stats.cancelled == 1
    assert await handle.cancel() is TaskState.CANCELLED


# --- after ------------------------------------------------------------------------------------------------------------


async def test_a_task_begins_after_others_are_done(pool: TaskPool):
    seen = []

    @pool.task()
    async def f(text: str) -> None:
        seen.append(text)

    one = await f.options(delay_s=0.1).enqueue("one")
    two = await f.enqueue("two")
    last = await f.options(after=[one, two]).enqueue("last")
    assert (await last.status()).state is TaskState.BLOCKED
    await pool.work()
    await last.result(5)
    assert seen == ["two", "one", "last"]
    await (await f.options(after=[last, one.id]).enqueue("at once")).result(5)
    with pytest.raises(NoResult):
        await f.options(after=["nobody"]).enqueue("never")
    assert await pool.waiting() == 0


async def test_what_comes_after_a_failure_is_cancelled_through_the_chain(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        raise ValueError

    one = await f.enqueue()
    two = await f.options(after=[one]).enqueue()
    three = await f.options(after=[two]).enqueue()
    await pool.work()
    with pytest.raises(TaskCancelled):
        await three.result(5)
    late = await f.options(after=[one]).enqueue()
    with pytest.raises(TaskCancelled):
        await late.result(5)
    assert await pool.waiting() == 0


# --- dependencies, middleware, hooks ----------------------------------------------------------------------------------


async def test_what_a_task_needs_is_made_once_for_a_run_and_cleaned_up(pool: TaskPool):
    log = []

    async def settings() -> str:
        log.append("settings")
        return "s"

    async def connection(s: Annotated[str, Depends(settings)]) -> AsyncIterator[str]:
        log.append(f"open {s}")
        try:
            yield "c"
        except ValueError:
            log.append("rolled back")
        finally:
            log.append("closed")

    def plain(context: TaskContext, s: Annotated[str, Depends(settings)]):
        yield f"{context.name}{s}"
        log.append("plain closed")

    @pool.task(localns=locals())
    async def f(
        fail: bool, c: Annotated[str, Depends(connection)] = INJECTED, p: Annotated[str, Depends(plain)] = INJECTED
    ) -> str:
        if fail:
            raise ValueError
        return c + p

    await pool.work()
    assert await (await f.enqueue(False)).result(5) == "cfs"
    assert log == ["settings", "open s", "plain closed", "closed"]
    log.clear()
    with pytest.raises(TaskFailed, match="ValueError"):
        await (await f.enqueue(True)).result(5)
    assert log == ["settings", "open s", "rolled back", "closed"]
    with pytest.raises(ConfigError):

        @pool.task()
        async def g(x: object) -> None: ...


async def test_middleware_goes_around_every_run_and_hooks_see_every_call(pool: TaskPool):
    log = []

    @pool.registry.add_middleware
    async def outer(context, call_next):
        log.append(f"outer {context.name} {context.headers}")
        try:
            return await call_next()
        except ValueError as error:
            raise OSError("translated") from error

    @pool.registry.add_middleware
    async def inner(context, call_next):
        return (await call_next()) + 1

    @pool.registry.on_enqueue
    def trace(enqueuing):
        enqueuing.headers["trace"] = enqueuing.name

    @pool.task()
    async def f(n: int) -> int:
        if n < 0:
            raise ValueError
        return n

    await pool.work()
    assert await (await f.options(headers={"a": "b"}).enqueue(1)).result(5) == 2
    assert log == ["outer f {'a': 'b', 'trace': 'f'}"]
    with pytest.raises(TaskFailed, match="OSError: translated"):
        await (await f.enqueue(-1)).result(5)


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_more_than_may_wait_is_refused_and_nothing_is_dropped(redis: Redis, unique: str):
    async with TaskPool(redis, unique, waiting_max=3, payload_bytes_max=1000) as pool:

        @pool.task(queue="q")
        async def f(text: str = "") -> None: ...

        handles = [await f.enqueue(), await f.options(delay_s=0.01).enqueue(), await f.enqueue()]
        with pytest.raises(QueueFull) as caught:
            await f.enqueue()
        assert (caught.value.queued, caught.value.limit, caught.value.what) == (3, 3, "tasks")
        with pytest.raises(QueueFull):
            await pool.client.enqueue_many([f.call()])
        with pytest.raises(PayloadTooLarge):
            await f.enqueue("x" * 1000)
        await pool.work()
        for handle in handles:
            await handle.result(5)
        await (await f.enqueue()).result(5)


async def test_a_result_that_is_too_large_fails_the_task(redis: Redis, unique: str):
    async with TaskPool(redis, unique) as pool:

        @pool.task(retry=Retry(3))
        async def f() -> str:
            return "x" * 2000

        await pool.work(payload_bytes_max=1000)
        with pytest.raises(TaskFailed, match="PayloadTooLarge"):
            await (await f.enqueue()).result(5)


# --- workers that stop, die or know less ------------------------------------------------------------------------------


async def test_a_drain_gives_tasks_back_without_using_up_a_retry(pool: TaskPool):
    begun = asyncio.Event()
    attempts = []

    @pool.task()
    async def f(context: TaskContext = INJECTED) -> int:
        attempts.append(context.attempt)
        begun.set()
        if len(attempts) == 1:
            await asyncio.sleep(60)
        return context.attempt

    @pool.task()
    async def quick() -> None:
        await asyncio.sleep(0.05)

    first = await pool.work()
    handle = await f.enqueue()
    await begun.wait()
    ending = await quick.enqueue()
    while first.running < 2:
        await asyncio.sleep(0.01)
    await first.drain(1.0)
    assert (await ending.status()).state is TaskState.DONE  # it had the time
    assert (await handle.status()).state is TaskState.QUEUED
    assert await pool.redis.link.call("HEXISTS", pool.keys.idle, first.worker) == 0
    await pool.work()
    assert await handle.result(5) == 1
    assert attempts == [1, 1]


async def test_a_task_of_newer_code_is_given_back_until_somebody_knows_it(pool: TaskPool):
    @pool.task(retry=Retry(3, backoff=QUICK))
    async def newer(context: TaskContext = INJECTED) -> str:
        if context.attempt < 3:
            raise OSError
        return context.worker

    old = await pool.work(registry=registry_of_queue("default"))
    handle = await newer.enqueue()
    while not old.stats.given_back:
        await asyncio.sleep(0.01)
    new = await pool.work()
    assert await handle.result(5) == new.worker
    assert (await handle.status()).failures == 2
    assert old.stats.given_back == 1


def registry_of_queue(queue: str) -> TaskRegistry:
    registry = TaskRegistry("old")

    @registry.task(queue=queue)
    async def known() -> None: ...

    return registry


async def test_what_a_dead_worker_held_runs_again_and_poison_is_buried(pool: TaskPool):
    begun = asyncio.Event()

    @pool.task(worker_losses_max=2)
    async def f(context: TaskContext = INJECTED) -> int:
        if context.attempt < 3:
            begun.set()
            await asyncio.sleep(60)
        return context.attempt

    @pool.task(worker_losses_max=0)
    async def once() -> None:
        begun.set()
        await asyncio.sleep(60)

    handle = await f.enqueue()
    for _ in range(2):
        await die_holding(pool, begun)
    await pool.work()
    assert await handle.result(5) == 3
    assert (await handle.status()).losses == 2

    pool.runners[-1].fence()
    poison = await once.enqueue()
    worker = await die_holding(pool, begun)
    with pytest.raises(TaskFailed, match="WorkerLost"):
        await poison.result(5)
    assert await pool.store.reap(worker, blame=True) == 0
    [(_, fields)] = await pool.redis.link.call("XRANGE", pool.keys.dead, "-", "+")
    assert fields[fields.index(b"key") + 1] == poison.id.encode()


async def die_holding(pool: TaskPool, begun: asyncio.Event) -> str:
    """A worker takes what there is, and is gone before it ends."""
    begun.clear()
    runner = await pool.work()
    await begun.wait()
    assert await pool.store.reap(runner.worker, blame=True) == -1
    runner.fence()
    await pool.lease(runner.worker, -1)
    assert await pool.store.reap(runner.worker, blame=True) == 0
    return runner.worker


async def test_without_blame_a_lost_worker_is_not_counted(pool: TaskPool):
    begun = asyncio.Event()

    @pool.task(worker_losses_max=0)
    async def f(context: TaskContext = INJECTED) -> int:
        if not begun.is_set():
            begun.set()
            await asyncio.sleep(60)
        return context.attempt

    handle = await f.enqueue()
    runner = await pool.work()
    await begun.wait()
    runner.fence()
    await pool.lease(runner.worker, -1)
    assert await pool.store.reap(runner.worker, blame=False) == 0
    await pool.work()
    assert await handle.result(5) == 1


async def test_a_worker_whose_lease_has_ended_gets_nothing_and_stops(pool: TaskPool):
    @pool.task()
    async def f() -> None: ...

    runner = await pool.work()
    await pool.lease(runner.worker, -1)
    handle = await f.enqueue()
    runner.wake()
    await asyncio.wait({runner._task}, timeout=5)
    assert runner._task.done()
    assert (await handle.status()).state is TaskState.QUEUED


async def test_a_zombies_report_is_refused_and_its_progress_too(pool: TaskPool):
    begun, go, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @pool.task()
    async def f(context: TaskContext = INJECTED) -> str:
        if context.attempt == 1:
            begun.set()
            await go.wait()
            try:
                await context.progress(0.5)
            except Fenced:
                refused.set()
            return "zombie"
        return "living"

    zombie = await pool.work()
    handle = await f.enqueue()
    await begun.wait()
    await pool.lease(zombie.worker, -1)
    await pool.store.reap(zombie.worker, blame=True)
    await pool.work()
    assert await handle.result(5) == "living"
    go.set()
    await refused.wait()
    while not zombie.stats.refused:
        await asyncio.sleep(0.01)
    assert await handle.result(5) == "living"


async def test_dead_letters_are_driven_again(pool: TaskPool):
    working = False

    @pool.task(retry=Retry(1, backoff=QUICK), concurrency=PerKey("{n}", 1), unique="{n}", priority=7)
    async def f(n: int, context: TaskContext = INJECTED) -> str:
        if not working:
            raise OSError("down")
        return f"{n} {context.attempt}"

    await pool.work()
    handle = await f.options(headers={"a": "b"}).enqueue(3)
    with pytest.raises(TaskFailed):
        await handle.result(5)
    [(entry, _)] = await pool.redis.link.call("XRANGE", pool.keys.dead, "-", "+")
    working = True
    assert await pool.store.redrive([entry.decode(), "1-1"]) == [handle.id, ""]
    assert await handle.result(5) == "3 1"
    assert (await handle.status()).priority == 7
    assert await pool.redis.link.call("XLEN", pool.keys.dead) == 0
    assert await pool.store.redrive([entry.decode()]) == [""]


async def test_nothing_is_left_behind_but_results(pool: TaskPool):
    @pool.task(concurrency=PerKey("{n}", 1), unique="{n}", rate=Rate(1000, per_s=0.1), result_ttl_s=None)
    async def f(n: int) -> None: ...

    await pool.work()
    await pool.client.enqueue_many([f.call(n % 5) for n in range(50)])
    one = await f.options(delay_s=0.05, result_ttl_s=60, unique="x").enqueue(9)
    last = await f.options(after=[one], result_ttl_s=60, unique="y").enqueue(9)
    await last.result(5)
    while await pool.waiting():
        await asyncio.sleep(0.01)
    await (await f.options(delay_s=0.2, result_ttl_s=60, unique="z").enqueue(9)).result(5)
    left = {key.partition(":")[0] for key in await left_keys(pool)}
    assert left <= {"task", "rate"}


async def test_closing_ends_every_wait(redis: Redis, unique: str):
    async with TaskPool(redis, unique) as pool:

        @pool.task()
        async def f() -> None: ...

        handle = await f.enqueue()
        waiting = asyncio.create_task(handle.result())
        while await redis.link.call("HEXISTS", pool.keys.task(handle.id), "w") == 0:
            await asyncio.sleep(0.005)
    with pytest.raises(Closed):
        await waiting


async def test_a_redrive_leaves_a_task_alone_that_has_not_ended(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        raise OSError

    runner = await pool.work()
    with pytest.raises(TaskFailed):
        await (await f.options(id="one").enqueue()).result(5)
    await runner.drain(1)
    [(entry, _)] = await pool.redis.link.call("XRANGE", pool.keys.dead, "-", "+")
    await pool.redis.link.call("DEL", pool.keys.task("one"))
    anew = await f.options(id="one", delay_s=60).enqueue()
    assert await pool.store.redrive([entry.decode()]) == ["one"]
    assert (await anew.status()).state is TaskState.DUE
    assert await pool.waiting() == 1
