"""Short tasks on a real server, where functions, exceptions, cancellations and sizes are not as one would like."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Annotated

import pytest

from flotta.errors import (
    Closed,
    ConfigError,
    NoResult,
    PayloadTooLarge,
    QueueFull,
    StateError,
    TaskCancelled,
    TaskFailed,
    WireError,
)
from flotta.pool.backoff import Backoff
from flotta.pool.tasks import INJECTED, Depends, Rate, Retry, RetryTask, TaskContext
from flotta.pool.tasks.store import Finished, Item, Verdict
from flotta.redis import Redis
from pool_tasks_harness import TaskPool, reading

QUICK = Backoff(first_s=0.01, max_s=0.02)


@pytest.fixture
async def pool(redis: Redis, unique: str) -> AsyncIterator[TaskPool]:
    async with TaskPool(redis, unique) as pool:
        yield pool


# --- exceptions ------------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [Unspeakable("x"), ValueError("bad \ud800 text"), ValueError("x" * 10_000_000)])
async def test_an_exception_that_cannot_be_shown_fails_the_task_all_the_same(pool: TaskPool, error: Exception):
    runs = []

    @pool.task()
    async def f() -> None:
        runs.append(1)
        raise error

    runner = await pool.work()
    with pytest.raises(TaskFailed) as failed:
        await (await f.enqueue()).result(5)
    assert failed.value.error_type == type(error).__name__
    assert len(failed.value.reason) <= 2000
    assert len(runs) == 1
    assert runner.running == 0


async def test_sys_exit_in_a_task_fails_the_task_and_not_the_worker(pool: TaskPool):
    @pool.task()
    async def leave() -> None:
        raise SystemExit(3)

    @pool.task()
    def leave_thread() -> None:
        raise SystemExit(4)

    @pool.task()
    async def f() -> str:
        return "here"

    await pool.work()
    for task in (leave, leave_thread):
        with pytest.raises(TaskFailed) as failed:
            await (await task.enqueue()).result(5)
        assert failed.value.error_type == "SystemExit"
    assert await (await f.enqueue()).result(5) == "here"


@pytest.mark.parametrize("after_s", [float("nan"), float("inf"), -1.0, "soon"])
async def test_a_pause_that_makes_no_sense_fails_the_task(pool: TaskPool, after_s: float):
    @pool.task()
    async def f() -> None:
        raise RetryTask(after_s=after_s)

    await pool.work()
    with pytest.raises(TaskFailed) as failed:
        await (await f.enqueue()).result(5)
    assert failed.value.error_type == "ConfigError"


async def test_what_the_function_raises_is_retried_whatever_it_is_called(pool: TaskPool):
    """WireError and PayloadTooLarge say that a payload can never fit; from the function's own calls they do not."""
    runs = []

    @pool.task(retry=Retry(2, backoff=QUICK))
    async def f() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise WireError("an entry of another stream", "junk", b"")
        if len(runs) == 2:
            raise PayloadTooLarge("a payload of another call", 2, 1)
        return len(runs)

    await pool.work()
    assert await (await f.enqueue()).result(5) == 3


async def test_a_result_that_cannot_travel_is_not_tried_again(pool: TaskPool):
    runs = []

    @pool.task(retry=Retry(2, backoff=QUICK))
    async def f() -> int:
        runs.append(1)
        return object()  # type: ignore[return-value]

    await pool.work()
    with pytest.raises(TaskFailed, match="result of"):
        await (await f.enqueue()).result(5)
    assert len(runs) == 1


# --- cancelling ------------------------------------------------------------------------------------------------------


async def test_a_task_cancelled_before_its_first_step_leaves_its_place(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        await asyncio.sleep(60)

    runner = await pool.work(tasks_max=1)
    begin = runner._begin

    def begin_and_cancel(fetched) -> None:  # both answers were read in one turn of the loop
        begin(fetched)
        runner._begin = begin
        runner.cancel(fetched.id.decode(), int(fetched.fence))

    runner._begin = begin_and_cancel
    handle = await f.enqueue()
    with pytest.raises(TaskCancelled):
        await handle.result(5)
    assert runner.running == 0


async def test_a_task_that_was_cancelled_while_its_hand_out_was_lost_ends(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        await asyncio.sleep(60)

    handle = await f.enqueue()
    worker = "wlost"
    await pool.lease(worker)
    turn = await pool.store.turn(worker, ["default"], 1, [])
    assert len(turn.tasks) == 1
    await handle.cancel()
    runner = await pool.work()
    runner.worker = worker  # the answer to its last turn was lost
    runner.audit()
    with pytest.raises(TaskCancelled):
        await handle.result(5)
    assert runner.running == 0


async def test_a_function_in_a_thread_is_not_abandoned_because_it_is_cancelled_twice(pool: TaskPool):
    begun, go_on = threading.Event(), threading.Event()

    @pool.task()
    def f() -> str:
        begun.set()
        go_on.wait(10)
        return "done all the same"

    runner = await pool.work(audit_s=0.01)
    handle = await f.enqueue()
    await asyncio.to_thread(begun.wait, 5)
    for _ in range(3):
        await handle.cancel()
        turns = runner.stats.turns
        while runner.stats.turns < turns + 2:
            runner.audit()
            await asyncio.sleep(0)
    assert runner.running == 1
    go_on.set()
    assert await handle.result(5) == "done all the same"


@pytest.mark.parametrize("time_first", [True, False])
async def test_a_function_in_a_thread_outlives_its_time_and_its_cancelling(pool: TaskPool, time_first: bool):
    told, go_on = threading.Event(), threading.Event()

    @pool.task()
    def f() -> str:
        while not TaskContext.current().cancelled:
            go_on.wait(0.001)
        told.set()
        go_on.wait(10)
        return "done all the same"

    runner = await pool.work()
    handle = await f.options(timeout_s=0.1 if time_first else 0.3).enqueue()
    if time_first:
        await asyncio.to_thread(told.wait, 5)
    while runner.running == 0:
        await asyncio.sleep(0.001)
    run = next(iter(runner._runs.values()))
    await handle.cancel()
    while run._ending is None:
        await asyncio.sleep(0.001)
    for _ in range(10):
        await asyncio.sleep(0)
    if not time_first:
        await asyncio.sleep(0.35)  # its time: nothing tells it but the clock
    assert runner.running == 1
    go_on.set()
    assert await handle.result(5) == "done all the same"


async def test_the_context_is_there_in_any_thread_of_the_task(pool: TaskPool):
    @pool.task()
    async def f() -> list[str]:
        name = await asyncio.to_thread(lambda: TaskContext.current().name)
        await asyncio.to_thread(lambda: TaskContext.current().progress_from_thread(0.5))
        with pytest.raises(StateError, match="wait for itself"):
            TaskContext.current().progress_from_thread(1)
        return [name]

    await pool.work()
    handle = await f.enqueue()
    assert await handle.result(5) == ["f"]
    progress = (await handle.status()).progress
    assert progress is not None
    assert progress.fraction == 0.5


async def greedy() -> AsyncIterator[int]:
    with contextlib.suppress(BaseException):
        yield 1


async def broken(one: Annotated[int, Depends(greedy)]) -> int:
    raise ValueError("no database")


async def test_a_generator_that_swallows_the_cancelling_makes_no_success_of_it(pool: TaskPool):
    begun = asyncio.Event()

    @pool.task()
    async def f(one: Annotated[int, Depends(greedy)] = INJECTED) -> None:
        begun.set()
        await asyncio.sleep(60)

    await pool.work()
    handle = await f.enqueue()
    await begun.wait()
    await handle.cancel()
    with pytest.raises(TaskCancelled):
        await handle.result(5)
    slow = await f.options(timeout_s=0.05).enqueue()
    with pytest.raises(TaskFailed, match="not done after"):
        await slow.result(5)


async def test_a_generator_that_swallows_what_another_raised_makes_no_success_of_it(pool: TaskPool):
    @pool.task()
    async def f(one: Annotated[int, Depends(broken)] = INJECTED) -> None: ...

    await pool.work()
    with pytest.raises(TaskFailed, match="no database"):
        await (await f.enqueue()).result(5)


async def test_a_function_in_a_thread_that_runs_out_of_items_fails(pool: TaskPool):
    @pool.task()
    def f() -> int:
        return next(iter([]))

    await pool.work()
    with pytest.raises(TaskFailed, match="StopIteration"):
        await (await f.enqueue()).result(5)


async def test_a_drain_waits_for_the_tasks_that_its_last_turn_brings(pool: TaskPool, monkeypatch: pytest.MonkeyPatch):
    answered, go_on, ran = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @pool.task()
    async def f() -> None:
        ran.set()

    await f.enqueue()
    turn = pool.store.turn

    async def slow(*args):
        answer = await turn(*args)
        answered.set()
        await go_on.wait()
        return answer

    monkeypatch.setattr(type(pool.store), "turn", lambda _, *args: slow(*args))
    runner = await pool.work()
    await answered.wait()
    draining = asyncio.create_task(runner.drain(5))
    await asyncio.sleep(0)
    go_on.set()
    await draining
    assert ran.is_set()
    assert await pool.redis.link.call("SCARD", pool.keys.held(runner.worker)) == 0


# --- sizes and bounds ------------------------------------------------------------------------------------------------


async def test_many_large_calls_travel_in_bounded_batches(pool: TaskPool, monkeypatch: pytest.MonkeyPatch):
    @pool.task()
    async def f(data: bytes) -> None: ...

    sent, under_way, most = [], 0, 0
    enqueue_batch = pool.store.enqueue_batch

    async def counted(items):
        nonlocal under_way, most
        sent.append(sum(len(item.payload) for item in items))
        under_way += 1
        most = max(most, under_way)
        try:
            return await enqueue_batch(items)
        finally:
            under_way -= 1

    monkeypatch.setattr(type(pool.store), "enqueue_batch", lambda _, items: counted(items))
    data = bytes(100_000)
    handles = await pool.client.enqueue_many(f.call(data) for _ in range(300))
    assert len({handle.id for handle in handles}) == 300
    assert max(sent) <= 600_000
    assert most <= 8


async def test_after_a_refusal_no_more_of_many_are_sent(redis: Redis, unique: str):
    async with TaskPool(redis, unique, waiting_max=10) as pool:

        @pool.task()
        async def f(n: int) -> None: ...

        calls = [f.call(n) for n in range(20_000)]
        with pytest.raises(QueueFull):
            await pool.client.enqueue_many(calls)
        assert await pool.waiting() == 10
        sent = await pool.redis.link.call("HGET", pool.keys.prefix + "tasks", "seq")
        assert int(sent) <= 8 * 256


async def test_a_worker_may_run_more_tasks_than_a_script_takes_arguments(pool: TaskPool):
    go_on = asyncio.Event()

    @pool.task()
    async def f() -> None:
        await go_on.wait()

    handles = await pool.client.enqueue_many(f.call() for _ in range(9_000))
    runner = await pool.work(tasks_max=20_000)
    async with asyncio.timeout(20):
        while runner.running < 9_000:
            await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(*(handle.result(20) for handle in handles))


async def test_rates_of_keys_that_come_once_are_not_kept(pool: TaskPool):
    @pool.task(rate=Rate(1000, key="{user}"))
    async def f(user: int) -> None: ...

    await pool.work()
    for user in range(20):
        await (await f.enqueue(user)).result(5)
    await asyncio.sleep(0.002)  # the time that the last reservation holds: nothing rings when it is over
    await (await f.enqueue(99)).result(5)
    assert await pool.redis.link.call("ZCARD", pool.keys.rate) <= 3


async def test_an_audit_does_not_fetch_what_is_known(pool: TaskPool):
    begun, go_on = asyncio.Event(), asyncio.Event()

    @pool.task()
    async def f(data: bytes) -> None:
        begun.set()
        await go_on.wait()

    runner = await pool.work()
    handle = await f.enqueue(bytes(1000))
    await begun.wait()
    [known] = runner._runs
    tasks, _ = await pool.store.held(runner.worker, [known])
    assert [(task.fence, task.payload) for task in tasks] == [(known, b"")]
    [task] = (await pool.store.held(runner.worker))[0]
    assert len(task.payload) > 1000
    go_on.set()
    await handle.result(5)


async def test_headers_are_text_and_count_as_payload(pool: TaskPool):
    @pool.task()
    async def f() -> None: ...

    with pytest.raises(ConfigError, match="headers"):
        f.options(headers={"trace": 1})  # type: ignore[dict-item]

    pool.registry.on_enqueue(lambda enqueuing: enqueuing.headers.update(n=1))
    with pytest.raises(ConfigError, match="headers"):
        await f.enqueue()
    pool.registry._hooks.clear()
    with pytest.raises(PayloadTooLarge):
        await f.options(headers={"big": "x" * (1 << 20)}).enqueue()


async def test_the_only_worker_of_a_queue_is_rung_among_many_idle_ones(pool: TaskPool):
    for number in range(150):
        await pool.lease(f"w{number}")
        await pool.store.turn(f"w{number}", ["default"], 1, [])
    await pool.lease("special")
    rung = asyncio.Event()
    for _ in range(20):
        await pool.store.turn("special", ["gpu"], 1, [])
        async with asyncio.timeout(5), reading(pool.redis, pool.keys.inbox("special"), lambda _: rung.set()):
            task_id = secrets.token_hex(8)
            await pool.store.enqueue_batch([Item(task_id, "f", b"\x80", "gpu", 5, b"", True)])
            await rung.wait()
        rung.clear()
        [task] = (await pool.store.turn("special", ["gpu"], 1, [])).tasks
        await pool.store.turn("special", ["gpu"], 0, [Finished(task.id, task.fence, Verdict.DONE, b"\xc0", 0)])


async def test_what_comes_after_a_task_is_told_in_steps(pool: TaskPool):
    ran = []

    @pool.task(result_ttl_s=None)
    async def f(n: int) -> None:
        ran.append(n)

    await pool.lease("w1")
    first = await f.options(result_ttl_s=60).enqueue(-1)
    last = await f.options(after=[first], result_ttl_s=60).enqueue(1000)
    await pool.client.enqueue_many(f.options(after=[first]).call(n) for n in range(1000))
    [task] = (await pool.store.turn("w1", ["default"], 1, [])).tasks
    await pool.store.turn("w1", ["default"], 0, [Finished(task.id, task.fence, Verdict.DONE, b"\xc0", 0)])
    left = [key async for key in pool.redis.scan_iter(match=pool.keys.prefix + "after:*")]
    assert [await pool.redis.scard(key) for key in left] == [601]
    assert await pool.redis.exists(pool.keys.prefix + "after:" + first.id) == 0
    await pool.work()
    await last.result(10)
    async with asyncio.timeout(10):
        while await pool.waiting() or len(ran) <= 1000:  # the last of them may still be in the worker's hands
            await asyncio.sleep(0.01)
    assert sorted(ran) == list(range(1001))
    assert [key async for key in pool.redis.scan_iter(match=pool.keys.prefix + "after:*")] == []
    assert await pool.redis.zcard(pool.keys.prefix + "due") == 0


async def test_what_comes_after_a_failure_is_cancelled_in_steps(pool: TaskPool):
    @pool.task()
    async def f(n: int) -> None:
        raise ValueError(n)

    first = await f.enqueue(-1)
    handles = await pool.client.enqueue_many(f.options(after=[first]).call(n) for n in range(500))
    await pool.work()
    ends = await asyncio.gather(*(handle.result(10) for handle in handles), return_exceptions=True)
    assert {type(end) for end in ends} == {TaskCancelled}
    assert await pool.waiting() == 0


async def test_a_failure_that_is_not_kept_is_told_in_full_to_who_waits(pool: TaskPool):
    @pool.task(result_ttl_s=None)
    async def f() -> None:
        raise ValueError("x" * 20_000)

    handle = await f.enqueue()
    waiting = asyncio.create_task(handle.result(5))
    while not await pool.redis.hexists(pool.keys.task(handle.id), "w"):
        await asyncio.sleep(0.001)
    await pool.work()
    with pytest.raises(TaskFailed, match="ValueError: xxx"):
        await waiting
    with pytest.raises(NoResult):
        await handle.status()


async def test_another_event_loop_is_told_so(pool: TaskPool):
    @pool.task()
    async def f() -> None: ...

    def elsewhere() -> None:
        for wrong in (f.enqueue, lambda: pool.client.enqueue_many([f.call()])):

            async def call(wrong=wrong) -> None:
                with pytest.raises(StateError, match=r"another event loop.*run_coroutine_threadsafe"):
                    await wrong()

            asyncio.run(call())

    await f.enqueue()
    await asyncio.to_thread(elsewhere)
    assert await pool.waiting() == 1


# --- what a run may say ----------------------------------------------------------------------------------------------


async def test_progress_that_is_no_number_is_refused_where_it_is_said(pool: TaskPool):
    @pool.task()
    async def f(context: TaskContext) -> str:
        with pytest.raises(ConfigError, match="fraction"):
            await context.progress("half")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="fraction"):
            await context.progress(float("nan"))
        await context.progress(1)
        return "ok"

    await pool.work()
    handle = await f.enqueue()
    assert await handle.result(5) == "ok"
    progress = (await handle.status()).progress
    assert progress is not None
    assert progress.fraction == 1.0


async def test_waiting_for_a_result_after_the_end_says_closed(pool: TaskPool):
    @pool.task()
    async def f() -> None: ...

    handle = await f.enqueue()
    await pool.client.aclose()
    with pytest.raises(Closed):
        await handle.result(1)


async def test_a_dead_letter_stays_while_the_pool_shuts_down(pool: TaskPool):
    @pool.task()
    async def f() -> None:
        raise ValueError("no")

    await pool.work()
    with pytest.raises(TaskFailed):
        await (await f.enqueue()).result(5)
    [(letter, _)] = await pool.redis.link.call("XRANGE", pool.keys.dead, "-", "+")
    await pool.redis.link.call("HSET", pool.keys.meta, "shutdown", "n")
    assert await pool.store.redrive([letter.decode()]) == [None]
    assert await pool.redis.link.call("XLEN", pool.keys.dead) == 1
    await pool.redis.link.call("HDEL", pool.keys.meta, "shutdown")
    assert await pool.store.redrive(["1-1"]) == [""]


async def test_a_turn_that_goes_wrong_does_not_end_the_others(pool: TaskPool, monkeypatch: pytest.MonkeyPatch):
    @pool.task()
    async def f() -> str:
        return "ok"

    runner = await pool.work()
    turn, failures = pool.store.turn, iter([RuntimeError("a bug")])

    async def once_wrong(*args, **kwargs):
        for error in failures:
            raise error
        return await turn(*args, **kwargs)

    monkeypatch.setattr(type(pool.store), "turn", lambda _, *args, **kwargs: once_wrong(*args, **kwargs))
    runner.wake()
    assert await (await f.enqueue()).result(5) == "ok"
    with pytest.raises(NoResult):
        await f.handle("nobody").result(5)
