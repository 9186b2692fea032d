"""The Redis user of the reference page: with it everything of a pool works, and nothing else does.

What is tried is what the page says: the rules are read from it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flotta.pool
from flotta.errors import CommandError
from flotta.pool import Backoff, Job, JobState, PerKey, Plan, Rate, Redriven, Retry, WorkerPool
from flotta.pool.inspection import PoolView, find_pools
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from pool_jobs_harness import FAST

ROOT = Path(__file__).parents[2]
POOL = Path(flotta.pool.__file__).parent
QUICK = Backoff(first_s=0.01)
OFTEN = Rate(1_000, per_s=1)
SESSION = {"ping", "client|id", "client|setinfo", "client|unblock", "evalsha", "script|load"}
"""What every connection and script needs, not the pool's own code."""


def rules() -> list[str]:
    page = (ROOT / "docs/reference/pool.md").read_text()
    [block] = re.findall(r"```text\n(vessels on .*?)```", page, re.DOTALL)
    return block.split()


def allowed() -> set[str]:
    return {rule[1:] for rule in rules() if rule.startswith("+")}


class Server(NamedTuple):
    admin: Redis
    user_url: str
    clients: AsyncExitStack

    def client(self) -> Redis:
        """A client of the pool's user."""
        return Redis.from_url(self.user_url, namespace="shop:")

    async def works(self) -> Service:
        """A process that works, with a client of its own."""
        service = Service()
        await service.pool.start(await self.clients.enter_async_context(self.client()), work=True)
        self.clients.push_async_callback(service.pool.close, 0.1)
        return service


@pytest.fixture
async def server(own_valkey: EmbeddedRedis) -> AsyncIterator[Server]:
    async with Redis.from_url(own_valkey.url) as admin, AsyncExitStack() as clients:
        assert await admin.link.call("ACL", "SETUSER", *rules()) in (b"OK", "OK")
        yield Server(admin, own_valkey.url.replace("redis://", "redis://vessels:PASSWORD@"), clients)


async def refusals(admin: Redis) -> list[Any]:
    """What the server refused this user."""
    return [entry for entry in await admin.link.call("ACL", "LOG", 100) if entry]


async def until(condition: Any) -> None:
    """Wait for what other nodes do."""
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.01)


class Service:
    """What is declared in each process; ``broken`` makes the poison jobs and the tasks fail."""

    def __init__(self) -> None:
        self.pool = WorkerPool("vessels", options=FAST)
        self.notes: list[bytes] = []
        self.planned = self.came_round = 0
        self.broken = True

        @self.pool.job(key="vessel:{n}")
        async def watch(job: Job[int], n: int) -> None:
            async for note in job.notifications():
                assert note is not None
                self.notes.append(note.payload)
                await job.checkpoint((job.state or 0) + 1)

        @self.pool.job(key="poison:{n}", crashes_max=0)
        async def poison(job: Job[None], n: int) -> None:
            if self.broken:
                raise ValueError("cannot parse")
            await asyncio.Event().wait()

        @self.pool.task(retry=Retry(1, backoff=QUICK), unique="double:{n}", concurrency=PerKey("{n}", 1), rate=OFTEN)
        async def double(n: int) -> int:
            if self.broken and n < 0:
                raise ValueError("too small")
            return 2 * n

        @self.pool.every(0.1)
        @self.pool.task()
        async def comes_round() -> None:
            self.came_round += 1

        @self.pool.schedule(every_s=0.1)
        async def plan() -> Plan:
            self.planned += 1
            return Plan(desired=[watch.call(100 + self.planned % 2)])

        self.watch, self.poison, self.double = watch, poison, double


async def run_jobs(service: Service, other: Service) -> None:
    pool = service.pool
    handles = await asyncio.gather(*(service.watch.dispatch(n) for n in range(20)))
    await handles[0].notify(b"one")
    await until(_async(lambda: [*service.notes, *other.notes] == [b"one"]))
    await handles[1].stop()
    info = await pool.job_info("vessel:0")
    assert info is not None
    assert info.state is JobState.RUNNING
    assert {f"vessel:{n}" for n in range(20) if n != 1} <= {job.key for job in await pool.jobs()}


async def run_tasks(service: Service) -> None:
    first, delayed = (
        await service.double.enqueue(1),
        await service.double.options(delay_s=0.05).enqueue(2),
    )
    assert (await first.result(10), await delayed.result(10)) == (2, 4)
    cancelled = await service.double.options(delay_s=60).enqueue(3)
    await cancelled.cancel()
    ticker = await service.pool.ticker("beat", every_s=0.05)
    assert (await anext(ticker)).name == "beat"
    await ticker.change(0.1)
    await ticker.stop()
    await until(_async(lambda: service.planned + service.came_round > 0))


async def run_dead_letters(service: Service, other: Service) -> None:
    dead = service.pool.dead_letters
    await service.poison.dispatch(1)
    failing = await service.double.enqueue(-1)
    with pytest.raises(Exception, match="too small"):
        await failing.result(10)

    async def both() -> bool:
        return await dead.count() == 2

    await until(both)
    service.broken = other.broken = False
    letters = [letter async for letter in dead.walk()]
    assert await dead.get(letters[0].id) == letters[0]
    assert await dead.redrive([letter.id for letter in letters]) == [Redriven.MADE, Redriven.MADE]
    assert await dead.delete([letters[0].id]) == 0


async def hand_over(service: Service, other: Service) -> None:
    """The jobs of the other go to this one; then there is nobody, and they are parked."""
    await other.pool.close()

    async def all_here() -> bool:
        jobs = await service.pool.jobs()
        mine = service.pool.worker
        assert mine is not None
        return all(job.owner == mine.id for job in jobs if job.key.startswith("vessel:"))

    await until(all_here)
    await service.pool.stop_working()
    assert {job.owner for job in await service.pool.jobs()} == {""}
    await service.pool.notify("vessel:0", b"parked")


def _async(condition: Any) -> Any:
    async def look() -> bool:
        return bool(condition())

    return look


async def test_everything_of_a_pool_works_with_the_user_of_the_reference(server: Server) -> None:
    service, other = await server.works(), await server.works()
    await run_jobs(service, other)
    await run_tasks(service)
    await run_dead_letters(service, other)
    async with server.client() as user:
        view = PoolView(user, "vessels")
        assert (await view.summary()).workers == 2
        assert await find_pools(user) == ["vessels"]
        await view.task_figures()
        await view.timers()
    await hand_over(service, other)
    third = await server.works()  # adopts what is parked, and its notification
    await until(_async(lambda: b"parked" in third.notes))
    await third.pool.shutdown()
    await service.pool.close()
    assert await server.admin.keys("*") == []
    assert await refusals(server.admin) == []


async def test_what_a_worker_left_behind_is_taken_over_with_the_user_of_the_reference(server: Server) -> None:
    dead = await server.works()
    for n in range(5):
        await dead.watch.dispatch(n)
    alive = await server.works()
    closing = asyncio.create_task(dead.pool.close())
    asyncio.get_running_loop().call_soon(closing.cancel)  # nothing is handed over
    with pytest.raises(asyncio.CancelledError):
        await closing

    async def moved() -> bool:
        mine = alive.pool.worker
        assert mine is not None
        jobs = [job for job in await alive.pool.jobs() if not job.key.startswith("vessel:10")]
        return len(jobs) == 5 and all(job.owner == mine.id and job.state is JobState.RUNNING for job in jobs)

    await until(moved)
    await alive.pool.shutdown()
    assert await refusals(server.admin) == []


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "shop:pool:{vessel}:meta"),
        ("HSET", "shop:pool:{vessels2}:meta", "f", "v"),
        ("UNLINK", "pool:{vessels}:meta"),
        ("XADD", "shop:stream:orders", "*", "f", "v"),
        ("PUBLISH", "shop:anything", "x"),
        ("SUBSCRIBE", "shop:anything"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("EVAL", "return 1", "0"),
    ],
    ids=lambda command: command[0],
)
async def test_what_lies_outside_is_refused(server: Server, command: tuple[str, ...]) -> None:
    async with server.client() as user:
        await user.link.call("HSET", "shop:pool:{vessels}:meta", "f", "v")
        with pytest.raises(CommandError, match="NOPERM"):
            await user.link.call(*command)


async def test_scripts_have_no_more_rights_than_the_user(server: Server) -> None:
    source = "return redis.call('HSET', 'shop:pool:{other}:meta', 'f', 'v')"
    async with server.client() as user:
        sha = await user.link.call("SCRIPT", "LOAD", source)
        with pytest.raises(CommandError, match=r"(?i)permission"):
            await user.link.call("EVALSHA", sha, 1, "shop:pool:{vessels}:meta")
    assert await server.admin.keys("*") == []


def _of_scripts() -> Iterator[str]:
    for script in POOL.rglob("*.lua"):
        yield from re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", script.read_text())


async def test_the_page_names_the_commands_that_are_used_and_no_others(server: Server) -> None:
    known = {name.decode().lower() for name in await server.admin.link.call("COMMAND", "LIST")}
    source = "".join(path.read_text() for path in POOL.rglob("*.py"))
    in_python = {word.lower() for word in re.findall(r"(?:\(|call\(\s*)\"([A-Z]+)\"", source)} & known
    used = {name.lower() for name in _of_scripts()} | in_python | {"xread"}
    assert used - {"client"} <= allowed()
    assert allowed() - SESSION <= used
