"""``flotta pool`` as a person or a script uses it: on a pool that works, in this process but in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import structlog
from click.testing import CliRunner

from flotta.cli import cli
from flotta.errors import FlottaError, NoWorkers, PoolShutdown
from flotta.pool import Backoff, Job, JobState, Node, Plan, PoolOptions, Retry, WorkerPool
from supervisor_service import flotta

T = TypeVar("T")
_SILENT = structlog.wrap_logger(structlog.testing.CapturingLogger())
"""The command's output is what is tested, and the pool shares its standard output."""


class CliCall:
    """The command in this process; what it raises becomes what ``main`` makes of it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        told = {name: None for name in os.environ if name.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))}
        result = CliRunner().invoke(cli, arguments, input=stdin, env={**told, "REDIS_URL": self.url})
        if isinstance(result.exception, FlottaError):
            return 1, result.stdout, f"{result.stderr}flotta: {result.exception}\n"
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr


class Stage:
    """A pool that works, and the command beside it."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.notes: list[tuple[str, bytes]] = []
        self.working = True
        self.blocked = asyncio.Event()
        self.pool = self.declare()

    def declare(self) -> WorkerPool:
        pool = WorkerPool(
            self.name, options=PoolOptions(worker_ttl_s=2.0, close_timeout_s=2.0), service="api", logger=_SILENT
        )

        @pool.job(key="vessel:{mmsi}")
        async def watch(job: Job[None], mmsi: int) -> None:
            async for note in job.notifications():
                assert note is not None
                self.notes.append((job.key, note.payload))

        @pool.job(key="poison:{n}", crashes_max=0, backoff=Backoff(first_s=0.01))
        async def poison(job: Job[None], n: int) -> None:
            if n < 10 or not self.working:
                raise ValueError("cannot parse\nthe thing")
            await asyncio.Event().wait()

        @pool.task(retry=Retry(0))
        async def charge(tenant: str) -> None:
            raise RuntimeError(f"the card of {tenant} was refused")

        @pool.task(queue="mail")
        async def send(to: str) -> None:
            await self.blocked.wait()

        self.watch, self.poison, self.charge, self.send = watch, poison, charge, send
        return pool

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def until(self, condition: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async with asyncio.timeout(10):
            while not await condition():
                await asyncio.sleep(0.01)

    async def dead(self, count: int) -> None:
        async def there() -> bool:
            return await self.pool.dead_letters.count() == count

        await self.until(there)

    def __call__(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        return CliCall(self.url)("pool", arguments[0], self.name, *arguments[1:], stdin=stdin)

    def json(self, *arguments: str) -> Any:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    def end(self) -> None:
        self.run(self.pool.close(2))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def stage(valkey_url: str, unique: str) -> Iterator[Stage]:
    stage = Stage(valkey_url, unique)

    async def begin() -> None:
        await stage.pool.start(valkey_url)
        await stage.pool.work(name="api-1")

    stage.run(begin())
    yield stage
    stage.end()


def rows(out: str) -> list[list[str]]:
    header, *lines = out.splitlines()
    assert header
    return [line.split() for line in lines]


def test_pools_are_listed_in_figures(stage):
    stage.run(stage.watch.dispatch(1))
    code, out, _ = CliCall(stage.url)("pool", "list")
    assert code == 0
    assert [stage.name, "1", "1", "0", "0", "0", "0"] in rows(out)
    code, out, _ = CliCall(stage.url)("pool", "list", "--json")
    [mine] = [one for one in json.loads(out) if one["name"] == stage.name]
    assert (mine["workers"], mine["jobs"], mine["shutting_down"]) == (1, 1, False)


def test_info_shows_what_a_pool_has(stage):
    stage.run(stage.watch.dispatch(1))
    handle = stage.run(stage.charge.enqueue("acme"))
    with pytest.raises(Exception, match="refused"):
        stage.run(handle.result(5))
    code, out, _ = stage("info")
    assert code == 0
    assert "1 on 1 node\n" in out
    assert "0 done, 1 failed, 0 cancelled" in out
    assert stage.json("info")["tasks"]["totals"]["failed"] == 1


def test_workers_and_jobs_say_who_runs_what(stage):
    for mmsi in (3, 1, 2):
        stage.run(stage.watch.dispatch(mmsi))
    [worker] = rows(stage("workers")[1])
    assert worker[0].startswith("api-1.")
    assert worker[1:5] == ["working", "3", "0", "api"]
    found = rows(stage("jobs")[1])
    assert [row[0] for row in found] == ["vessel:1", "vessel:2", "vessel:3"]
    assert {row[3] for row in found} == {worker[0]}
    assert len(rows(stage("jobs", "--state", "running", "--worker", worker[0])[1])) == 3
    assert stage("jobs", "--state", "queued") == (0, "", "no such jobs\n")
    code, out, err = stage("jobs", "-n", "2")
    assert (code, len(rows(out)), err) == (0, 2, "the first 2; -n shows more\n")
    assert {job["state"] for job in stage.json("jobs")} == {"running"}
    assert stage("jobs", "--state", "dead")[0] == 2


def test_job_is_shown_with_its_payload(stage):
    stage.run(stage.watch.dispatch(7))
    record = stage.json("job", "vessel:7")
    assert (record["payload"], record["state"], record["kind"]) == ({"mmsi": 7}, "running", "watch")
    assert stage("job", "vessel:8") == (1, "", f"there is no job 'vessel:8' in pool {stage.name!r}\n")


def test_a_failed_task_and_a_job_are_shown_for_people(stage):
    handle = stage.run(stage.charge.enqueue("\x1b[31macme"))
    with pytest.raises(Exception, match="refused"):
        stage.run(handle.result(5))
    out = stage("task", handle.id)[1]
    shown = {line.split()[0]: line for line in out.splitlines()}
    assert "refused" in shown["last_failure"]
    assert "Traceback" in shown["trace"]
    assert "·[31macme" in out  # the control character cannot reach the terminal
    stage.run(stage.watch.dispatch(1))
    out = stage("job", "vessel:1")[1]
    assert "dispatched_at" in out
    assert "dispatched_ms" not in out
    assert stage.json("job", "vessel:1")["dispatched_ms"] > 0


def test_tasks_by_queue_and_one_by_its_id(stage):
    running = stage.run(stage.send.enqueue("a"))
    stage.run(stage.send.options(delay_s=60).enqueue("b"))

    async def runs() -> bool:
        return (await running.status()).state.value == "running"

    stage.run(stage.until(runs))
    code, out, _ = stage("tasks")
    assert (code, out.splitlines()[0]) == (0, "1 running, 1 due later, 0 held up by others")
    assert stage.json("task", running.id)["state"] == "running"
    assert stage("cancel", running.id)[1] == "it runs, its worker was told to cancel it\n"

    async def is_cancelled() -> bool:
        return (await running.status()).state.value == "cancelled"

    stage.run(stage.until(is_cancelled))
    assert stage("task", "nothing")[0] == 1
    assert stage("cancel", "nothing")[0] == 1


def test_dead_letters_are_shown_chosen_and_made_again(stage):
    stage.run(stage.charge.enqueue("acme"))
    for n in (1, 20):
        stage.working = False
        stage.run(stage.poison.dispatch(n))
    stage.run(stage.dead(3))
    code, out, _ = stage("dead")
    assert code == 0
    assert sorted((row[1], row[2]) for row in rows(out)) == [("job", "poison"), ("job", "poison"), ("task", "charge")]
    assert "RuntimeError: the card of acme was refused" in out
    [letter] = stage.json("dead", "--key", "poison:20")
    assert (letter["payload"], letter["error"]) == ({"n": 20}, "ValueError: cannot parse\nthe thing")
    assert "raise RuntimeError" in stage("dead", "-v", "--kind", "task")[1]

    stage.working = True
    assert stage("redrive", letter["id"]) == (0, "1 made again\n", "")

    async def runs() -> bool:
        info = await stage.pool.job_info("poison:20")
        return info is not None and info.state is JobState.RUNNING

    stage.run(stage.until(runs))
    code, out, err = stage("redrive", letter["id"])
    assert (code, out, err) == (1, "0 made again\n", f"{letter['id']}: there is no such letter\n")
    assert len(stage.json("redrive", "--all", "--name", "charge")) == 1
    stage.run(stage.dead(2))  # the task has failed again
    assert stage("redrive")[0] == 2
    assert stage("redrive", "--all", letter["id"])[0] == 2
    assert stage("redrive", "xx", stdin="")[0] == 1


def test_discarding_asks_first(stage):
    stage.run(stage.charge.enqueue("acme"))
    stage.run(stage.dead(1))
    code, out, _ = stage("discard", "--all", stdin="n\n")
    assert (code, "1 dead letters" in out) == (1, True)
    assert stage("discard", "--all", "--kind", "job", "--yes") == (0, "0 thrown away\n", "")
    assert stage("discard", "--all", "--yes") == (0, "1 thrown away\n", "")
    assert stage("dead") == (0, "", "no dead letters\n")


def test_jobs_are_stopped_and_told(stage):
    for mmsi in (1, 2, 3):
        stage.run(stage.watch.dispatch(mmsi))
    assert stage("notify", "vessel:1", "hello") == (0, "", "")
    assert stage("notify", "vessel:1", stdin="from a pipe") == (0, "", "")

    async def told() -> bool:
        return stage.notes == [("vessel:1", b"hello"), ("vessel:1", b"from a pipe")]

    stage.run(stage.until(told))
    assert stage("notify", "vessel:9", "hello")[0] == 1
    assert stage("stop", "vessel:1", "vessel:2") == (0, "vessel:1: stopped\nvessel:2: stopped\n", "")
    assert [job.key for job in stage.run(stage.pool.jobs())] == ["vessel:3"]
    assert stage("stop", "vessel:1") == (1, "", "vessel:1: there is no such job\n")
    assert stage("stop", "--no-wait", "vessel:3", "vessel:9")[0] == 1
    assert stage("stop")[0] == 2


def test_drained_worker_gets_nothing_any_more_and_hands_over_what_it_has(stage):
    other = stage.declare()
    watch, send = stage.watch, stage.send

    async def begin() -> None:
        await other.start(stage.url)
        await other.work(name="api-2")
        for mmsi in range(20):
            await watch.dispatch(mmsi)

    stage.run(begin())
    try:
        assert stage("drain", "api")[2].startswith("2 workers' ids begin with 'api'")
        assert stage("drain", "nobody")[0] == 1
        code, out, _ = stage("drain", "api-1")
        assert (code, "hands over" in out) == (0, True)

        async def is_empty() -> bool:
            first, second = await other.workers()
            return (first.jobs, second.jobs) == (0, 20)

        stage.run(stage.until(is_empty))
        for n in range(10):
            stage.run(send.enqueue(str(n)))

        async def all_run() -> bool:
            return sum(worker.tasks for worker in await other.workers()) == 10

        stage.run(stage.until(all_run))
        assert [(row[1], row[2], row[3]) for row in rows(stage("workers")[1])] == [
            ("draining", "0", "0"),
            ("working", "20", "10"),
        ]
    finally:
        stage.run(other.close(2))


def test_drain_says_what_stays_because_nobody_else_is_there(stage):
    for mmsi in (1, 2):
        stage.run(stage.watch.dispatch(mmsi))
    worker = stage.run(stage.pool.workers())[0].id
    said = f"{worker} drains, but no other worker is there: 2 jobs stay with it until one joins, new ones are refused"
    code, out, err = stage("drain", "api-1")
    assert (code, out, err) == (0, "", f"{said}, and tasks wait\n")
    assert {(job.owner, job.state) for job in stage.run(stage.pool.jobs())} == {(worker, JobState.RUNNING)}
    with pytest.raises(NoWorkers):
        stage.run(stage.watch.dispatch(3))
    other = stage.declare()
    stage.run(other.start(stage.url, work=True))

    async def moved() -> bool:
        return {job.owner for job in await other.jobs()} == {other.worker.id}

    try:
        stage.run(stage.until(moved))
        assert stage("drain", "api-1")[1] == f"{worker} hands over 0 jobs\n"
    finally:
        stage.run(other.close(2))


def test_drain_says_which_jobs_no_other_worker_knows(stage):
    stage.run(stage.watch.dispatch(1))
    stage.run(stage.poison.dispatch(20))
    other = WorkerPool(stage.name, options=PoolOptions(worker_ttl_s=2.0, close_timeout_s=2.0), logger=_SILENT)

    @other.job(key="vessel:{mmsi}")
    async def watch(job: Job[None], mmsi: int) -> None:
        await asyncio.Event().wait()

    stage.run(other.start(stage.url, work=True))
    try:
        code, out, err = stage("drain", "api-1")
        assert (code, "hands over" in out) == (0, True)
        assert err == "no other worker knows 1 job of kind 'poison': they stay until one joins that does\n"

        async def moved() -> bool:
            owners = {job.key: job.owner for job in await other.jobs()}
            return owners == {"vessel:1": other.worker.id, "poison:20": stage.pool.worker.id}

        stage.run(stage.until(moved))
    finally:
        stage.run(other.close(2))


def test_timers_are_shown_with_their_rules(valkey_url, unique):
    stage = Stage(valkey_url, unique)

    @stage.pool.cron("0 4 * * *", tz="Europe/Rome")
    @stage.pool.task()
    async def report() -> None: ...

    @stage.pool.schedule(every_s=60)
    async def plan() -> Plan:
        return Plan(desired=[stage.watch.call(1), stage.watch.call(2)])

    async def begin() -> bool:
        await stage.pool.start(valkey_url, work=True)
        ticker = await stage.pool.ticker("beat", every_s=1800)
        await ticker.stop()
        return True

    async def planned() -> bool:
        return len(await stage.pool.jobs()) == 2

    try:
        stage.run(begin())
        stage.run(stage.until(planned))
        found = {timer["name"]: timer for timer in stage.json("timers")}
        assert (found["report"]["kind"], found["report"]["rule"]) == ("cron", "0 4 * * * Europe/Rome")
        assert (found["plan"]["kind"], found["plan"]["rule"], found["plan"]["planned"]) == (
            "scheduler",
            "every 60 s",
            2,
        )
        assert found["beat"]["next_at"] is None
        assert [row[0] for row in rows(stage("timers")[1])] == ["scheduler", "cron", "ticker"]
    finally:
        stage.end()


def test_shutdown_asks_and_then_leaves_nothing(stage, valkey_url):
    for mmsi in range(5):
        stage.run(stage.watch.dispatch(mmsi))
    assert stage("shutdown", stdin="n\n")[0] == 1
    assert len(stage.run(stage.pool.jobs())) == 5
    code, out, _ = stage("shutdown", "--yes")
    assert (code, out) == (0, f"pool {stage.name!r} is gone\n")
    assert stage("info")[0] == 1


def test_shutdown_leaves_a_pool_alone_that_its_service_has_begun_anew(stage, valkey_url):
    class Quiet:
        async def start(self, job: Job[None]) -> None: ...

        async def stop(self, job: Job[None]) -> None: ...

    async def restart() -> Node:
        while True:
            await asyncio.sleep(0.005)
            try:
                if stage.pool.node.closed:
                    node = await Node.join(stage.name, valkey_url, worker_ttl_s=2.0, logger=_SILENT)
                    break
            except PoolShutdown:
                continue
        await node.add_worker(Quiet())
        await node.dispatch("anew")
        return node

    restarting = asyncio.run_coroutine_threadsafe(restart(), stage.loop)
    assert stage("shutdown", "--yes")[0] == 0
    node = restarting.result(10)
    assert [job.key for job in stage.run(node.jobs())] == ["anew"]
    stage.run(node.shutdown())


def test_unknown_pool_names_the_others(stage):
    result = CliCall(stage.url)("pool", "info", "nope")
    assert result[0] == 1
    assert stage.name in result[2]
    assert CliCall(stage.url)("pool", "info", "no good name")[0] == 1


def test_command_of_a_process_ends_with_one_sentence_where_there_is_no_server():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FLOTTA_", "REDIS_"))}
    done = subprocess.run(
        flotta("pool", "list", "--redis", "redis://127.0.0.1:1/0"),
        env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "flotta: no connection to 127.0.0.1:1: Connection refused"
    assert "Traceback" not in done.stderr
