"""The server is killed, paused, restarted, full: every call ends, and nothing runs twice unseen.

``FLOTTA_CANCELLED_CALLS`` (default 30,000) says how many calls are cancelled at random; ``make chaos`` has 200,000.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import replace

import pytest
import redis.exceptions as driver
from structlog.testing import capture_logs

from flotta.errors import AmbiguousOutcome, CommandError, LinkUnavailable, NotApplied, Outcome, RedisError
from flotta.redis import Link, LinkOptions, Redis, Script
from flotta.redis.embedded import EmbeddedRedis
from free_ports import free_port

pytestmark = pytest.mark.faults
CALLS = int(os.environ.get("FLOTTA_CANCELLED_CALLS", "30000"))
QUICK = LinkOptions(
    command_timeout_s=1.0, connect_timeout_s=1.0, heartbeat_s=0.3, reconnect_min_s=0.01, retry_delay_s=0.02
)


class Tally:
    """How the increments of many callers ended."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.replies: list[int] = []

    async def increment(self, client: Redis, key: str) -> None:
        try:
            self.replies.append(await client.incr(key))
            self.ends["applied"] += 1
        except AmbiguousOutcome:
            self.ends["ambiguous"] += 1
        except NotApplied:
            self.ends["not applied"] += 1

    def assert_explains(self, counter: int) -> None:
        assert self.ends["applied"] <= counter <= self.ends["applied"] + self.ends["ambiguous"], self.ends
        assert len(set(self.replies)) == len(self.replies), "a reply went to two callers, or an INCR ran twice"


async def load(client: Redis, tally: Tally, key: str, is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        await tally.increment(client, key)


async def test_server_killed_and_restarted_under_load(own_valkey: EmbeddedRedis) -> None:
    client = await Redis.from_url(own_valkey.url, options=QUICK).connect()
    tally, is_over = Tally(), asyncio.Event()
    callers = [asyncio.create_task(load(client, tally, "n", is_over)) for _ in range(100)]
    for _ in range(4):
        goal = len(tally.replies) + 2_000
        async with asyncio.timeout(20):
            while len(tally.replies) < goal:
                await tally.increment(client, "n")
        await asyncio.to_thread(own_valkey.kill)  # while the callers go on
        await own_valkey.restart()
    is_over.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*callers)
    tally.assert_explains(int(await client.get("n")))
    assert tally.ends["ambiguous"] >= 1, "the kills hit nothing in flight: the test proves nothing"
    await client.aclose()


async def test_reads_and_last_writes_survive_a_restart_unseen(own_valkey: EmbeddedRedis) -> None:
    client = await Redis.from_url(own_valkey.url, options=LinkOptions(reconnect_min_s=0.01)).connect()
    await client.set("k", "v")
    is_over = asyncio.Event()

    async def caller(number: int) -> int:
        count = 0
        while not is_over.is_set():
            await client.set(f"k{number}", count)
            assert await client.get(f"k{number}") == str(count).encode()
            count += 1
        return count

    callers = [asyncio.create_task(caller(number)) for number in range(50)]
    for _ in range(3):
        goal = client.link.stats.commands + 3_000
        while client.link.stats.commands < goal:
            await client.get("k")
        own_valkey.kill()
        await own_valkey.restart()
        await client.get("k")
    is_over.set()
    assert min(await asyncio.gather(*callers)) > 0
    assert client.link.stats.connections >= 4
    await client.aclose()


async def test_client_kill_costs_nothing_but_the_ambiguous(own_valkey: EmbeddedRedis) -> None:
    options = replace(QUICK, reconnect_max_s=0.02)  # a connection that is cut at once makes the pauses grow
    client = await Redis.from_url(own_valkey.url, options=options).connect()
    killer = await Link.connect(own_valkey.url)
    tally, is_over = Tally(), asyncio.Event()
    callers = [asyncio.create_task(load(client, tally, "n", is_over)) for _ in range(50)]
    for _ in range(20):
        victim = await client.client_id()
        await killer.call("CLIENT", "KILL", "ID", victim)
        await client.get("n")
    is_over.set()
    await asyncio.gather(*callers)
    tally.assert_explains(int(await client.get("n")))
    assert client.link.stats.connections >= 20
    await killer.aclose()
    await client.aclose()


async def test_stopped_server_is_noticed_and_its_return_used(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=QUICK)
    loop = asyncio.get_running_loop()
    own_valkey.pause()
    started_s = loop.time()
    with pytest.raises(AmbiguousOutcome):
        await link.call("INCR", "n")
    assert loop.time() - started_s < 2 * 1.0
    # The kernel still accepts connections of a stopped process: the greeting, not the connect, must time out.
    with pytest.raises(LinkUnavailable):
        await link.call("INCR", "n")
    own_valkey.resume()
    assert await link.call("INCR", "n", timeout_s=10) in {1, 2}
    await link.aclose()


async def test_idle_silence_is_noticed_within_two_heartbeats(own_valkey: EmbeddedRedis) -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Observer:
        def on_link_up(self) -> None: ...
        def on_link_push(self, push: list[object]) -> None: ...
        def on_link_down(self, reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

    options = replace(QUICK, heartbeat_s=0.8)
    link = Link(own_valkey.url, options=options, observer=Observer())
    await link.start()
    own_valkey.pause()
    async with asyncio.timeout(3 * options.heartbeat_s):
        assert "heartbeat" in await lost
    own_valkey.resume()
    await link.aclose()


async def test_a_long_blocking_call_is_not_taken_for_silence(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=QUICK)
    assert await link.call("BLPOP", "none", 1.5, timeout_s=3) is None
    assert link.stats.connections == 1
    await link.aclose()


async def test_silence_during_a_patient_call_ends_that_connection(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=QUICK)
    own_valkey.pause()
    with pytest.raises(AmbiguousOutcome):
        await link.call("BLPOP", "none", 1, timeout_s=1.2)
    # Were it still taken for alive, the next call would be written to it, and so on for ever.
    with pytest.raises(LinkUnavailable):
        await link.call("BLPOP", "none", 1, timeout_s=1.2)
    own_valkey.resume()
    assert await link.call("PING", timeout_s=10) == b"PONG"
    await link.aclose()


async def test_thousands_of_calls_cancelled_at_random(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=LinkOptions(command_timeout_s=20))
    rng = random.Random(20261121)
    mixed_up = answered = cancelled = 0

    async def echo(number: int) -> None:
        nonlocal mixed_up, answered
        reply = await link.call("ECHO", number)
        answered += 1
        mixed_up += reply != str(number).encode()

    for start in range(0, CALLS, 2_000):
        tasks = [asyncio.create_task(echo(number)) for number in range(start, start + 2_000)]
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        for task in rng.sample(tasks, 1_000):
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            cancelled += isinstance(result, asyncio.CancelledError)
    assert mixed_up == 0
    assert answered + cancelled == CALLS
    assert answered >= CALLS // 2
    assert cancelled > CALLS // 10
    assert await link.call("ECHO", "in step") == b"in step"
    assert link.stats.in_flight == link.stats.waiting == 0
    assert link.stats.connections == 1
    await link.aclose()


async def test_cancelled_before_it_is_written_it_never_is(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=LinkOptions(reconnect_min_s=0.01))
    own_valkey.kill()
    while link.connected:
        await asyncio.sleep(0)
    ahead = asyncio.ensure_future(link.call("ECHO", "ahead", timeout_s=10))
    waiting = asyncio.ensure_future(link.call("INCR", "n"))
    await asyncio.sleep(0)
    waiting.cancel()
    await own_valkey.restart()
    assert await ahead == b"ahead"
    assert await link.call("INCR", "n", timeout_s=10) == 1
    await link.aclose()


async def test_what_waited_too_long_behind_a_patient_call_is_never_written(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url, options=QUICK)
    own_valkey.kill()
    while link.connected:
        await asyncio.sleep(0)
    patient = asyncio.ensure_future(link.call("ECHO", "patient", timeout_s=20))
    with pytest.raises(NotApplied):
        await link.call("INCR", "n")
    await own_valkey.restart()
    assert await patient == b"patient"
    assert await link.call("GET", "n") is None, "its caller was told that it does not run"
    await link.aclose()


async def test_full_server_says_so_and_is_used_when_it_has_a_place() -> None:
    async with EmbeddedRedis(arguments=["--maxclients", "2"]) as server:
        first, second = await Link.connect(server.url), await Link.connect(server.url)
        with pytest.raises(LinkUnavailable, match="max number of clients"):
            await Link.connect(server.url)
        third = Link(server.url, options=QUICK)
        waiting = asyncio.ensure_future(third.call("PING", timeout_s=10))
        await asyncio.sleep(0)
        await first.aclose()
        assert await waiting == b"PONG"
        await second.aclose()
        await third.aclose()


async def test_wrong_password_names_the_reason_and_never_the_password() -> None:
    async with EmbeddedRedis(password="right") as server:
        wrong = server.url.replace("right", "c4nary")
        with pytest.raises(LinkUnavailable, match="WRONGPASS") as caught:
            await Link.connect(wrong)
        assert "c4nary" not in str(caught.value)
        with pytest.raises(LinkUnavailable, match="NOAUTH"):
            await Link.connect(server.url.replace(":right@", ""))
        client = Redis.from_url(wrong)
        with pytest.raises(driver.ConnectionError) as both:
            await client.connect()
        assert isinstance(both.value, LinkUnavailable)
        await client.aclose()


async def test_acl_user_may_what_it_may(own_valkey: EmbeddedRedis) -> None:
    admin = await Link.connect(own_valkey.url)
    await admin.call(
        "ACL", "SETUSER", "svc", "on", ">pw", "~app:*", "&app:*", "+@all", "-@dangerous", "-ping", "-client"
    )
    client = await Redis.from_url(own_valkey.url.replace("redis://", "redis://svc:pw@")).connect()
    assert await client.acl_whoami() == "svc"
    assert await client.set("app:k", 1)
    with pytest.raises(driver.NoPermissionError) as caught:
        await client.set("other", 1)
    assert isinstance(caught.value, CommandError)
    with pytest.raises(CommandError, match="NOPERM"):
        await client.hub.subscribe("other", object())  # type: ignore[arg-type]
    # Rights taken away while it runs end the connection on the server's side; new ones are refused.
    await admin.call("ACL", "DELUSER", "svc")
    with pytest.raises(RedisError):
        await Link.connect(own_valkey.url.replace("redis://", "redis://svc:pw@"))
    await client.aclose()
    await admin.aclose()


async def test_loading_server_makes_callers_wait_instead_of_failing() -> None:
    async with EmbeddedRedis(
        port=free_port(),
        appendonly=True,
        arguments=["--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"],
    ) as server:
        client = await Redis.from_url(
            server.url, options=LinkOptions(reconnect_min_s=0.01, command_timeout_s=20)
        ).connect()
        async with client.pipeline(transaction=False) as pipe:
            for number in range(5_000):
                pipe.set(f"k{number}", b"x" * 100)
            await pipe.execute()
        with capture_logs() as logs:
            restarting = asyncio.ensure_future(server.restart())
            while client.link.connected:
                await asyncio.sleep(0)
            assert await client.get("k4999") == b"x" * 100
            await restarting
        assert any("LOADING" in line.get("reason", "") for line in logs), "it was never seen loading: proves nothing"
        assert await client.get("k4999") == b"x" * 100
        await client.aclose()


async def test_busy_server_did_not_run_what_it_refused(own_valkey: EmbeddedRedis) -> None:
    client = await Redis.from_url(own_valkey.url).connect()
    await client.config_set("busy-reply-threshold", 20)
    endless = Script("while true do end", name="endless")
    blocked = await Link.connect(own_valkey.url)
    killer = await Link.connect(own_valkey.url)
    running = asyncio.ensure_future(endless(blocked))

    async def increment_until_refused() -> None:
        while True:
            await killer.call("INCR", "n")

    with pytest.raises(CommandError, match="BUSY") as caught:
        await increment_until_refused()
    assert caught.value.outcome is Outcome.NOT_APPLIED
    # INCR was refused before it ran, so it is repeated; by then the script has been killed.
    counted = asyncio.ensure_future(client.incr("m"))
    await killer.call("SCRIPT", "KILL")
    assert await counted == 1
    with pytest.raises(CommandError):
        await running
    for link in (blocked, killer):
        await link.aclose()
    await client.aclose()


async def test_read_only_server_did_not_run_what_it_refused(own_valkey: EmbeddedRedis) -> None:
    client = await Redis.from_url(own_valkey.url, options=LinkOptions(retry_delay_s=0.01)).connect()
    await client.replicaof("127.0.0.1", "1")
    with pytest.raises(driver.ReadOnlyError) as caught:
        await client.incr("n")
    assert isinstance(caught.value, CommandError)
    assert caught.value.outcome is Outcome.NOT_APPLIED
    await client.replicaof("NO", "ONE")
    assert await client.incr("n") == 1
    await client.aclose()
