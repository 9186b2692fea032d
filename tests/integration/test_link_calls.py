"""One connection, many callers: replies, errors, limits and life of a link, on a real server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flotta.errors import AmbiguousOutcome, Closed, CommandError, LinkBusy, LinkUnavailable, Outcome
from flotta.redis import Link, LinkOptions, Script
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy

QUICK = LinkOptions(command_timeout_s=0.4, connect_timeout_s=0.4, heartbeat_s=0.4, reconnect_min_s=0.01)


@pytest.fixture
async def link(valkey_url: str) -> AsyncIterator[Link]:
    made = await Link.connect(valkey_url)
    yield made
    await made.aclose()


async def test_replies_have_their_resp3_types(link: Link, unique: str) -> None:
    assert await link.call("SET", unique, b"\x00\xff") == b"OK"
    assert await link.call("GET", unique) == b"\x00\xff"
    assert await link.call("GET", f"{unique}-none") is None
    assert await link.call("EXISTS", unique) == 1
    assert await link.call("ZADD", f"{unique}-z", 1.5, "a") == 1
    assert await link.call("ZSCORE", f"{unique}-z", "a") == 1.5
    assert await link.call("HSET", f"{unique}-h", "f", memoryview(b"v")) == 1
    assert await link.call("HGETALL", f"{unique}-h") == {b"f": b"v"}
    assert await link.call("EVAL", "return {1, {2, 'x'}, redis.status_reply('S')}", 0) == [1, [2, b"x"], b"S"]


async def test_ten_thousand_callers_get_their_own_replies(link: Link) -> None:
    async def ask(number: int) -> bool:
        return await link.call("ECHO", number) == str(number).encode()

    assert all(await asyncio.gather(*(ask(number) for number in range(10_000))))


async def test_calls_of_one_tick_leave_in_order_in_one_write(link: Link, unique: str) -> None:
    before = link.stats
    calls = [link.call("RPUSH", unique, number) for number in range(100)]
    assert await asyncio.gather(*calls) == list(range(1, 101))
    assert await link.call("LRANGE", unique, 0, -1) == [str(number).encode() for number in range(100)]
    assert link.stats.commands - before.commands == 101
    assert link.stats.in_flight == link.stats.waiting == 0


async def test_error_reply_names_command_and_code_and_leaves_the_link_working(link: Link, unique: str) -> None:
    await link.call("SET", unique, "text")
    with pytest.raises(CommandError) as caught:
        await link.call("HGET", unique, "field")
    assert caught.value.code == "WRONGTYPE"
    assert caught.value.command == "HGET"
    assert caught.value.outcome is Outcome.APP
    assert await link.call("GET", unique) == b"text"


async def test_batch_keeps_order_and_puts_errors_in_place(link: Link, unique: str) -> None:
    replies = await link.call_many([("SET", unique, 1), ("LPUSH", unique, 1), ("INCR", unique)])
    assert replies[0] == b"OK"
    assert isinstance(replies[1], CommandError)
    assert replies[1].command == "LPUSH"
    assert replies[2] == 2
    assert await link.call_many([]) == []


async def test_transaction_of_a_batch_is_not_interleaved(link: Link, unique: str) -> None:
    async def transaction() -> list[int]:
        increments = [("INCR", unique)] * 5
        *_, executed = await link.call_many([("MULTI",), *increments, ("EXEC",)])
        return executed

    for executed in await asyncio.gather(*(transaction() for _ in range(200))):
        assert executed == list(range(executed[0], executed[0] + 5))


@pytest.mark.parametrize("argument", [None, True, object(), bytearray(b"x"), ["x"]])
async def test_wrong_argument_raises_at_once_and_spoils_nothing(link: Link, argument: object) -> None:
    with pytest.raises(TypeError):
        link.call("SET", "key", argument)  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        link.call()
    assert await link.call("ECHO", "still in step") == b"still in step"


async def test_big_payload_and_big_reply_pass(link: Link, unique: str) -> None:
    value = secrets.token_bytes(24 << 20)
    written, small = await asyncio.gather(link.call("SET", unique, value), link.call("ECHO", "behind"))
    assert written == b"OK"
    assert small == b"behind"
    assert await link.call("GET", unique) == value
    await link.call("DEL", unique)


async def test_in_flight_limit_makes_callers_wait_and_all_are_served(valkey_url: str, unique: str) -> None:
    link = await Link.connect(valkey_url, options=LinkOptions(in_flight_max=10))
    batch = [("INCR", unique)] * 25
    replies = await asyncio.gather(*(link.call("INCR", unique) for _ in range(500)), link.call_many(batch))
    assert replies[:500] == list(range(1, 501))
    assert replies[500] == list(range(501, 526))
    await link.aclose()


async def test_in_flight_never_passes_its_limit(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        link = await Link.connect(proxy.url, options=LinkOptions(in_flight_max=10, command_timeout_s=5))
        proxy.pause("down")
        calls = [asyncio.ensure_future(link.call("ECHO", number)) for number in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (link.stats.in_flight, link.stats.waiting) == (10, 90)
        proxy.resume()
        assert await asyncio.gather(*calls) == [str(number).encode() for number in range(100)]
        await link.aclose()


async def test_batch_passes_the_limit_rather_than_being_cut(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        link = await Link.connect(proxy.url, options=LinkOptions(in_flight_max=10))
        proxy.pause("down")
        calls = [asyncio.ensure_future(link.call("PING")) for _ in range(5)]
        batch = asyncio.ensure_future(link.call_many([("PING",)] * 10))
        calls.append(asyncio.ensure_future(link.call("PING")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (link.stats.in_flight, link.stats.waiting) == (15, 1)
        proxy.resume()
        assert await batch == [b"PONG"] * 10
        assert await asyncio.gather(*calls) == [b"PONG"] * 6
        await link.aclose()


async def test_too_many_waiting_fail_at_once_as_not_applied(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        link = await Link.connect(proxy.url, options=LinkOptions(in_flight_max=5, waiting_max=10))
        proxy.pause()
        calls = [asyncio.ensure_future(link.call("ECHO", number)) for number in range(20)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert done == set(calls[15:])
        for call in done:
            with pytest.raises(LinkBusy) as caught:
                call.result()
            assert caught.value.outcome is Outcome.NOT_APPLIED
        proxy.resume()
        assert await asyncio.gather(*calls[:15]) == [str(number).encode() for number in range(15)]
        await link.aclose()


async def test_a_place_that_does_not_come_in_time_is_link_busy(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        options = LinkOptions(in_flight_max=1, command_timeout_s=0.3, reconnect_min_s=5, reconnect_max_s=5)
        link = await Link.connect(proxy.url, options=options)
        proxy.pause()
        # A patient call holds the only place, so that the connection is not ended under the others.
        first = asyncio.ensure_future(link.call("ECHO", "a", timeout_s=30))
        second = asyncio.ensure_future(link.call("ECHO", "b"))
        with pytest.raises(LinkBusy) as caught:
            await second
        assert caught.value.in_flight == 1
        proxy.resume()
        assert await first == b"a"
        await link.aclose()


async def test_own_time_limit_fails_the_one_call_and_keeps_the_connection(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        link = await Link.connect(proxy.url)
        proxy.pause()
        hurried = asyncio.ensure_future(link.call("ECHO", "hurried", timeout_s=0.05))
        calm = asyncio.ensure_future(link.call("ECHO", "calm"))
        with pytest.raises(AmbiguousOutcome):
            await hurried
        proxy.resume()
        assert await calm == b"calm"
        assert link.stats.connections == 1
        await link.aclose()


async def test_call_waits_for_the_first_connection_and_says_why_there_is_none() -> None:
    link = Link("redis://127.0.0.1:1", options=QUICK)
    with pytest.raises(LinkUnavailable, match="Connection refused") as caught:
        await link.call("PING")
    assert caught.value.address == "127.0.0.1:1"
    with pytest.raises(LinkUnavailable, match="Connection refused"):
        await link.call("PING", timeout_s=0.05)
    with pytest.raises(LinkUnavailable):
        await link.call_many([("PING",), ("PING",)])
    await link.aclose()


async def test_start_reports_the_first_failure_and_a_later_success(own_valkey: EmbeddedRedis) -> None:
    own_valkey.kill()
    link = Link(own_valkey.url, options=QUICK)
    with pytest.raises(LinkUnavailable):
        await link.start()
    await own_valkey.restart()
    assert await link.call("PING", timeout_s=10) == b"PONG"
    await link.start()
    await link.aclose()


async def test_closed_link_says_so_and_closing_twice_is_harmless(valkey_url: str) -> None:
    link = await Link.connect(valkey_url)
    last = link.call("ECHO", "last words")
    await link.aclose()
    assert await last == b"last words"
    await link.aclose()
    with pytest.raises(Closed):
        link.call("PING")
    with pytest.raises(Closed):
        await link.start()
    never_used = Link(valkey_url)
    await never_used.aclose()
    with pytest.raises(Closed):
        never_used.call("PING")


async def test_close_ends_what_is_in_flight_and_what_waits(valkey_url: str) -> None:
    async with FaultProxy(valkey_url) as proxy:
        link = await Link.connect(proxy.url, options=LinkOptions(in_flight_max=1))
        proxy.pause()
        written, waiting = link.call("ECHO", 1), link.call("ECHO", 2)
        await asyncio.sleep(0)
        await link.aclose(drain_s=0.01)
        with pytest.raises(AmbiguousOutcome, match="closed"):
            await written
        with pytest.raises(LinkUnavailable, match="closed"):
            await waiting


async def test_script_is_loaded_once_and_again_after_the_server_forgot_it(link: Link, unique: str) -> None:
    script = Script(f"return redis.call('INCR', KEYS[1]) -- {unique}", name="count")
    assert [await script(link, keys=[unique]) for _ in range(3)] == [1, 2, 3]
    await link.call("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(script(link, keys=[unique]) for _ in range(50))) == list(range(4, 54))
    failing = Script(f"return redis.error_reply('BUSY is what I say') -- {unique}", name="fails")
    with pytest.raises(CommandError, match="BUSY is what I say") as caught:
        await failing(link)
    assert caught.value.outcome is Outcome.APP


async def _knows(link: Link, command: str) -> bool:
    try:
        return bool(await link.call("COMMAND", "DOCS", command))
    except CommandError:  # before Redis 7.0
        return False


async def test_unix_socket_database_number_and_client_name(tmp_path: Path, unique: str) -> None:
    path = tmp_path / "v.sock"
    async with EmbeddedRedis(unixsocket=path) as server:
        options = LinkOptions(client_name="flotta:svc:1")
        link = await Link.connect(f"unix://{path}?db=3", options=options)
        await link.call("SET", unique, "x")
        assert b"name=flotta:svc:1" in await link.call("CLIENT", "INFO")
        assert b" db=3 " in await link.call("CLIENT", "INFO")
        if await _knows(link, "CLIENT|SETINFO"):  # Redis 7.2, any Valkey
            assert b"lib-name=flotta" in await link.call("CLIENT", "INFO")
        other = await Link.connect(server.url)
        assert await other.call("GET", unique) is None
        await link.aclose()
        await other.aclose()


async def test_idle_connection_is_kept_by_heartbeats(valkey_url: str) -> None:
    link = await Link.connect(valkey_url, options=LinkOptions(heartbeat_s=0.05))
    before = link.stats.bytes_received
    async with asyncio.timeout(5):
        while link.stats.bytes_received < before + 3 * len(b"+PONG\r\n"):
            await asyncio.sleep(0.01)
    assert link.stats.connections == 1
    await link.aclose()


async def test_reconnect_selects_the_database_again(own_valkey: EmbeddedRedis) -> None:
    link = await Link.connect(own_valkey.url.removesuffix("/0") + "/7", options=LinkOptions(reconnect_min_s=0.01))
    await link.call("SET", "k", "seven")
    await own_valkey.restart()
    assert await link.call("GET", "k", timeout_s=10) == b"seven"
    await link.aclose()
