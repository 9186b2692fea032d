"""The streams adapter: one order for all, nothing lost between reads, and honest about what Redis has lost."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed

from flotta.realtime import Server
from flotta.realtime.adapters.streams import StreamsAdapter
from flotta.redis import LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming.event import parse_id
from flotta.testing import FaultProxy
from realtime_fixtures import serving, until
from realtime_recovery_places import connections
from realtime_recovery_stage import Raw

__all__ = ["connections"]

EVENT = '{"opts":{"rooms":[],"except":[],"flags":{}},"packet":{"type":2,"data":["other"],"nsp":"/"}}'


class Logs:
    """What a server says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda what, **_: self.said.append((level, what))


def make(url: str, prefix: str, **options: Any) -> Server:
    names = {"stream_name": prefix, "channel_prefix": prefix, "recovery_key_prefix": f"{prefix}:session:"}
    return Server(url, adapter="streams", **{**names, **options})


@asynccontextmanager
async def place(url: str, prefix: str, **options: Any) -> AsyncIterator[tuple[Server, int]]:
    sio = make(url, prefix, **options)
    await sio.start()
    async with serving(sio, native=True) as port:
        yield sio, port


def adapter_of(sio: Server) -> StreamsAdapter:
    found = sio._core.adapter
    assert isinstance(found, StreamsAdapter)
    return found


async def test_all_clients_of_all_instances_see_one_order(valkey_url: str, unique: str) -> None:
    async with place(valkey_url, unique) as (one, port_one), place(valkey_url, unique) as (two, port_two):
        clients = [await Raw.join(port) for port in (port_one, port_two)]

        async def publish(sio: Server, name: str) -> None:
            for number in range(200):
                await sio.emit(name, number)
                if number % 10 == 0:
                    await asyncio.sleep(0)

        await asyncio.gather(publish(one, "a"), publish(two, "b"))
        await one._core.adapter.settled()  # type: ignore[union-attr]
        await two._core.adapter.settled()  # type: ignore[union-attr]
        await one.emit("end")
        heard = [await client.events_until("end") for client in clients]
        assert heard[0] == heard[1]
        for name in ("a", "b"):
            assert [event[1] for event in heard[0] if event[0] == name] == list(range(200))


async def test_entries_are_as_nodes_adapter_writes_them(valkey_url: str, unique: str, redis: Redis) -> None:
    async with place(valkey_url, unique) as (sio, _):
        await sio.emit("text", {"a": 1}, room="r", skip_sid="x")
        await sio.emit("bytes", b"\0\1", volatile=True)
        await sio.disconnect("nobody")
        await sio._core.adapter.settled()  # type: ignore[union-attr]
        begin, text, binary, command = [fields for _, fields in await redis.xrange(unique)]
        uid = adapter_of(sio).uid.encode()
        assert begin == {b"flotta": b"begin"}
        assert (text[b"uid"], text[b"nsp"], text[b"type"]) == (uid, b"/", b"3")
        assert json.loads(text[b"data"]) == {
            "opts": {"rooms": ["r"], "except": ["x"], "flags": {}},
            "packet": {"type": 2, "data": ["text", {"a": 1}], "nsp": "/"},
        }
        assert msgpack.unpackb(base64.b64decode(binary[b"data"]))["packet"]["data"] == ["bytes", b"\0\1"]
        assert msgpack.unpackb(base64.b64decode(binary[b"data"]))["opts"]["flags"] == {"volatile": True}
        assert command[b"type"] == b"6"


async def test_without_recovery_clients_get_no_offset_and_no_private_id(valkey_url: str, unique: str) -> None:
    async with place(valkey_url, unique, recovery_s=None) as (sio, port):
        client = await Raw.join(port)
        assert client.ids.keys() == {"sid"}
        await sio.emit("n", 1)
        assert await client.event() == ["n", 1]


async def test_junk_in_the_stream_is_counted_and_stops_nothing(valkey_url: str, unique: str, redis: Redis) -> None:
    async with place(valkey_url, unique) as (sio, port):
        client = await Raw.join(port)
        junk: list[dict[str, str | bytes]] = [
            {"what": "ever"},
            {"uid": "u", "nsp": "/", "type": "3", "data": "{"},
            {"uid": "u", "nsp": "/", "type": "3", "data": "not base64!"},
            {"uid": "u", "nsp": "/", "type": "3"},
            {"uid": "u", "nsp": "/", "type": "99", "data": "{}"},
            {"uid": b"\xff", "nsp": "/", "type": "3", "data": "{}"},
            {"uid": "u", "nsp": "/", "type": "3", "data": '{"opts":{"rooms":5},"packet":{"type":2,"data":["e"]}}'},
            {"uid": "u", "nsp": "/", "type": "3", "data": '{"opts":{},"packet":{"type":2,"data":[]}}'},
        ]
        for fields in junk:
            await redis.xadd(unique, fields)  # type: ignore[arg-type]
        await sio.emit("end")
        assert await client.events_until("end") == []
        assert sio.stats.adapter is not None
        assert sio.stats.adapter.junk == len(junk)


async def test_nothing_is_lost_while_the_connection_to_redis_is_cut(valkey_url: str, unique: str) -> None:
    async with (
        FaultProxy(valkey_url) as proxy,
        place(proxy.url, unique) as (sio, port),
        make(valkey_url, unique) as other,
    ):
        client = await Raw.join(port)
        sent = 0
        for _ in range(3):
            proxy.cut()
            for _ in range(150):  # more than one read
                await other.emit("n", sent)
                sent += 1
            await until(lambda: sio.stats.adapter is not None and sio.stats.adapter.connected)
        await other.emit("end")
        assert [event[1] for event in await client.events_until("end")] == list(range(sent))
        assert sio.stats.adapter is not None
        assert sio.stats.adapter.gaps == 0


async def test_a_redis_that_has_lost_its_stream_is_noticed_and_clients_begin_anew(unique: str) -> None:
    with EmbeddedRedis() as forgetful:
        logs = Logs()
        async with place(forgetful.url, unique, logger=logs) as (sio, port):
            client = await Raw.join(port)
            await sio.emit("n", 1)
            offset = (await client.event())[-1]
            forgetful.kill()
            await until(lambda: not adapter_of(sio).stats.connected)
            await forgetful.start()
            await until(lambda: adapter_of(sio).stats.connected)
            assert adapter_of(sio).stats.gaps == 1
            assert ("error", "Redis has lost events of the stream: clients that come back begin anew") in logs.said
            await sio.emit("n", 2)
            assert (await client.event())[:2] == ["n", 2]
            # The client is still connected, and its session is saved again; what it has last is behind the loss.
            sid = client.ids["sid"]
            await sio.save_session(sid, {})
            again = await Raw.join(port, client.back(offset))
            assert again.ids["pid"] != client.ids["pid"]


async def test_events_stay_as_long_as_they_may_be_missed_and_no_longer(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    async with place(valkey_url, unique, recovery_s=10.0, ping_interval_s=0.1, ping_timeout_s=0.1) as (sio, _):
        adapter = adapter_of(sio)
        now_ms = int((await redis.time())[0]) * 1000
        await redis.delete(unique)
        for age_ms in (*range(400_000, 100_000, -1_000), 5_000, 1_000, 10):
            await redis.xadd(unique, {"flotta": "old"}, id=f"{now_ms - age_ms}-0")
        await adapter._keep_up()
        left = [parse_id(entry)[0] for entry, _ in await redis.xrange(unique)]
        # Whole nodes of a hundred entries go. Of what is too old the newest stays: who has seen that has seen all.
        assert len(left) < 110
        assert {now_ms - 101_000, now_ms - 5_000, now_ms - 1_000, now_ms - 10} <= set(left)


async def test_a_stream_that_is_too_short_for_the_promise_is_told_once(valkey_url: str, unique: str) -> None:
    logs = Logs()
    async with place(valkey_url, unique, stream_maxlen=100, logger=logs) as (sio, _):
        for number in range(300):
            await sio.emit("n", number)
        await sio._core.adapter.settled()  # type: ignore[union-attr]
        for _ in range(2):
            await adapter_of(sio)._keep_up()
        told = [what for level, what in logs.said if level == "warning" and "stream_maxlen" in what]
        assert len(told) == 1


async def test_stats_say_where_the_reader_is_and_how_far_behind(valkey_url: str, unique: str, redis: Redis) -> None:
    async with place(valkey_url, unique) as (sio, _):
        await sio.emit("n", 1)
        await sio._core.adapter.settled()  # type: ignore[union-attr]
        ((last, _),) = await redis.xrevrange(unique, count=1)
        stats = adapter_of(sio).stats
        assert (stats.position, stats.lag_s) == (last.decode(), 0.0)
        adapter_of(sio)._newest = (parse_id(last)[0] + 1_500, 0)
        assert adapter_of(sio).stats.lag_s == 1.5


async def test_entries_that_were_trimmed_before_they_were_read_are_noticed_and_clients_told(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    """An instance that was stopped for longer than the stream keeps."""
    async with place(valkey_url, unique, stream_maxlen=50) as (sio, port), place(valkey_url, unique) as (other, there):
        client, elsewhere = await Raw.join(port), await Raw.join(there)
        await other.emit("n", 0)
        offset = (await client.event())[-1]
        reader = adapter_of(sio)._reader
        reader._task.cancel()  # type: ignore[union-attr]
        for number in range(1, 20):
            await other.emit("n", number)
        await adapter_of(other).settled()
        await redis.xtrim(unique, maxlen=5, approximate=False)
        reader._looked_s -= 10.0
        reader._task = asyncio.create_task(reader._run())
        with pytest.raises(ConnectionClosed):
            await client.next()
        assert adapter_of(sio).stats.gaps == 1
        await adapter_of(sio).reached(adapter_of(other).position)
        again = await Raw.join(port, client.back(offset))
        assert again.ids["pid"] != client.ids["pid"]
        await other.emit("end")
        assert await again.events_until("end") == []
        assert [event[1] for event in await elsewhere.events_until("end")] == list(range(20))
        await other.emit("end")
        await again.events_until("end")
        assert adapter_of(sio).stats.gaps == 1


async def test_a_burst_does_not_outrun_the_own_reader(valkey_url: str, unique: str) -> None:
    async with place(valkey_url, unique, stream_maxlen=200) as (sio, port):
        client = await Raw.join(port)
        for number in range(3_000):
            await sio.emit("n", number)
        await sio.emit("end")
        assert [event[1] for event in await client.events_until("end")] == list(range(3_000))
        assert adapter_of(sio).stats.gaps == 0


async def test_a_lost_end_of_the_stream_is_noticed_though_others_have_gone_on(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    """As after a failover: what was read is gone, and what came later stands in its place."""
    async with place(valkey_url, unique) as (sio, port):
        client = await Raw.join(port)
        await sio.emit("n", 1)
        await sio.emit("n", 2)
        offset = [await client.event() for _ in range(2)][-1][-1]
        reader = adapter_of(sio)._reader
        reader._task.cancel()  # type: ignore[union-attr]
        await redis.xdel(unique, offset)
        entry = {"uid": "u", "nsp": "/", "type": "3", "data": EVENT}
        await redis.xadd(unique, entry)
        reader._reads_well = False
        reader._task = asyncio.create_task(reader._run())
        assert (await client.event())[0] == "other"
        await until(lambda: adapter_of(sio).stats.gaps == 1)
        client.cut()
        await until(lambda: not sio.is_connected(client.ids["sid"]))
        again = await Raw.join(port, client.back(offset))
        assert again.ids["pid"] != client.ids["pid"]


async def test_ids_go_on_behind_what_was_read_though_redis_and_its_clock_are_others(unique: str) -> None:
    """Otherwise a client from before the loss is taken for one who has everything, once the clock has come as far."""
    async with EmbeddedRedis() as valkey, place(valkey.url, unique) as (sio, port):
        client = await Raw.join(port)
        adapter = adapter_of(sio)
        read = adapter._reader.position[0] + 3_600_000, 0
        adapter._reader.position = adapter._reader._witness = read
        adapter._reader._reads_well = False
        adapter._reader._task.cancel()  # type: ignore[union-attr]
        adapter._reader._task = asyncio.create_task(adapter._reader._run())
        await until(lambda: adapter.stats.gaps == 1)
        await sio.emit("n", 1)
        event = await client.event()
        assert event[:2] == ["n", 1]
        assert parse_id(event[2]) > read


async def test_what_redis_refuses_the_own_clients_get(unique: str) -> None:
    logs = Logs()
    async with EmbeddedRedis() as valkey, place(valkey.url, unique, logger=logs) as (sio, port):
        client = await Raw.join(port)
        async with Redis.from_url(valkey.url) as redis:
            await redis.config_set("maxmemory", 1)
            for number in range(5):
                await sio.emit("n", number)
            await sio.emit("text", "x")
            assert [(await client.event())[:2] for _ in range(5)] == [["n", number] for number in range(5)]
            assert len(await client.event()) == 3
            await redis.config_set("maxmemory", 0)
        await sio.emit("n", 6)
        assert len(await client.event()) == 3
        assert adapter_of(sio).stats.publish_lost == 6
        assert [level for level, what in logs.said if what == "Redis refuses broadcasts"] == ["error"] * 3


async def test_what_redis_has_certainly_not_got_the_own_clients_get_and_what_may_be_lost_is_told(unique: str) -> None:
    logs = Logs()
    with EmbeddedRedis() as valkey:
        options = LinkOptions(in_flight_max=1, command_timeout_s=1.0, reconnect_max_s=0.2)
        async with await Redis.from_url(valkey.url, options=options).connect() as redis:
            sio = Server(redis, adapter="streams", stream_name=unique, channel_prefix=unique, relay=False, logger=logs)
            async with serving(sio, native=True) as port:
                client = await Raw.join(port)
                valkey.pause()
                for number in range(4):
                    await sio.emit("n", number)
                await until(lambda: adapter_of(sio).stats.in_flight >= 4)
                valkey.kill()
                # The first may have arrived, and may come back; the others have waited here.
                assert [(await client.event())[:2] for _ in range(3)] == [["n", number] for number in (1, 2, 3)]
                assert adapter_of(sio).stats.publish_lost == 4
                told = [level for level, what in logs.said if what == "a broadcast was lost on its way"]
                assert told == ["warning"] * 3  # the 1st, 2nd and 4th
