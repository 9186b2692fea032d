"""The sharded adapter on a real Redis: which channels it has, what it promises about rooms, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from flotta.errors import ClusterTimeout, ConfigError, LinkUnavailable, ServerTooOld
from flotta.realtime import Server
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from free_ports import free_port
from realtime_fixtures import until
from realtime_members import Member, attach

MODES = ["static", "dynamic", "dynamic-private"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Start = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start(valkey_url: str, unique: str) -> AsyncIterator[Start]:
    """Start servers with a prefix of this test's own; they end with it."""
    servers: list[Server] = []

    async def start_one(url: str = valkey_url, **options: Any) -> Server:
        sio = Server(url, adapter="sharded", channel_prefix=unique, **options)
        await sio.start()
        servers.append(sio)
        return sio

    yield start_one
    for sio in servers:
        await sio.aclose()


async def _channels(redis: Redis, prefix: str) -> set[str]:
    found = await redis.link.call("PUBSUB", "SHARDCHANNELS", f"{prefix}*")
    return {name.decode() for name in found}


# --- rooms and their channels ----------------------------------------------------------------------------------------


async def test_each_mode_has_the_channels_that_node_expects(start: Start, redis: Redis, unique: str, mode: str) -> None:
    sio = await start(sharded_mode=mode)
    uid = sio._core.adapter.uid  # type: ignore[union-attr]
    assert re.fullmatch(r"[0-9a-f]{16}", uid)
    always = {f"{unique}#/#", f"{unique}#/#{uid}#", f"{unique}-filtered#/#"}
    assert await _channels(redis, unique) == always
    member = await attach(sio)
    for room in ("r", "é 船", "x" * 20, "\U0001f6a2" * 10, "\U0001f6a2" * 20):
        assert await sio.enter_room(member.sid, room)
    public = {f"{unique}#/#{room}#" for room in ("r", "é 船", "\U0001f6a2" * 20)}
    private = {f"{unique}#/#{room}#" for room in (member.sid, "x" * 20, "\U0001f6a2" * 10)}  # 20 units of UTF-16
    expected = {"static": always, "dynamic": always | public, "dynamic-private": always | public | private}
    assert await _channels(redis, unique) == expected[mode]
    member.leave()
    second = await attach(sio)
    await sio.enter_room(second.sid, "last")
    assert not (await _channels(redis, unique)) & (public | private)


@pytest.mark.parametrize("seed", range(3))
async def test_any_coming_and_going_ends_with_the_channels_of_the_rooms_that_have_members(
    start: Start, redis: Redis, unique: str, seed: int
) -> None:
    rng, sio = random.Random(seed), await start()
    rooms = [f"room {number}" for number in range(6)]
    members: list[Member] = []
    for _ in range(300):
        chance = rng.random()
        if chance < 0.1 or not members:
            members.append(await attach(sio))
        elif chance < 0.15:
            members.pop(rng.randrange(len(members))).leave()
        elif chance < 0.6:
            entering = sio.enter_room(rng.choice(members).sid, rng.choice(rooms))
            if chance < 0.4:
                with contextlib.suppress(TimeoutError):  # half way: the client stays in the room
                    await asyncio.wait_for(entering, 0)
            else:
                await entering
        else:
            await sio.leave_room(rng.choice(members).sid, rng.choice(rooms))
    last = await attach(sio)
    for number in range(2):  # what was sent before has been done then, and what its confirmation has caused
        await sio.enter_room(last.sid, f"last {number}")
    inhabited = {name for member in members for name in sio.rooms(member.sid)} & set(rooms)
    found = {name for name in await _channels(redis, unique) if "#room " in name}
    assert found == {f"{unique}#/#{name}#" for name in inhabited}


async def test_nothing_sent_to_a_room_after_entering_it_is_missed(start: Start, valkey_url: str, mode: str) -> None:
    async with FaultProxy(valkey_url) as slow:
        slow.latency_s = 0.003  # what is sent by the other server would be there first
        one, two = await start(sharded_mode=mode), await start(slow.url, sharded_mode=mode)
        member = await attach(two)
        for number in range(60):
            room = f"room {number}"
            await two.enter_room(member.sid, room)
            await one.emit("e", number, room=room)
            if number % 3 == 0:  # a room that is entered again: between leaving and entering nobody owes anything
                await two.leave_room(member.sid, room)
                await two.enter_room(member.sid, room)
                await one.emit("e", -number, room=room)
        await one.emit("end")
        await until(lambda: '42["end"]' in member.got)
        await two.aclose()
    got = [json.loads(text[2:])[1] for text in member.got[:-1]]
    assert set(got) >= {number for number in range(60) if number % 3} | {-number for number in range(0, 60, 3)}
    # In order too: one connection publishes, one connection of the other server hears, whatever the channel.
    assert [number for number in got if number > 0] == sorted(number for number in got if number > 0)


async def test_a_redis_that_does_not_answer_holds_entering_up_for_a_second_at_most(
    start: Start, valkey_url: str
) -> None:
    async with FaultProxy(valkey_url) as slow:
        sio = await start(slow.url)
        member = await attach(sio)
        slow.pause("down")
        async with asyncio.timeout(3):
            assert await sio.enter_room(member.sid, "r")
        slow.resume()
        assert sio.rooms(member.sid) == sorted(["r", member.sid])
        other = await start()
        await until(lambda: sio._core.adapter._open["/"].rooms["r"][0].live)  # type: ignore[union-attr]
        await other.emit("e", 1, room="r")
        await until(lambda: member.got == ['42["e",1]'])
        await sio.aclose()


async def test_only_servers_with_somebody_in_the_room_hear_a_broadcast_to_it(start: Start) -> None:
    one, two, three = await start(), await start(), await start()
    member = await attach(two)
    await two.enter_room(member.sid, "r")
    for number in range(10):
        await one.emit("e", number, room="r")
    await one.emit("both", room=["r", "other"])
    await one.emit("end")
    await until(lambda: '42["end"]' in member.got)
    await until(lambda: three.stats.adapter.received == 2)  # type: ignore[union-attr]
    assert two.stats.adapter.received == 12  # type: ignore[union-attr]
    assert len(member.got) == 12


async def test_filtered_broadcasts_travel_where_node_does_not_listen(start: Start, redis: Redis, unique: str) -> None:
    one, two = await start(), await start()
    member, other = await attach(two), await attach(two)
    for sio in (one, two):
        sio.may_see("ours")(lambda sid, session, value: session.get("sees") == value)
    await two.save_session(member.sid, {"sees": 1})
    await two.enter_room(member.sid, "r")
    await two.enter_room(other.sid, "r")

    heard: list[bytes] = []

    class Ear:
        def on_message(self, channel: bytes, payload: bytes) -> None:
            heard.append(payload)

        def on_lost(self) -> None: ...
        def on_restored(self) -> None: ...

    for channel in (f"{unique}#/#", f"{unique}#/#r#"):
        await redis.hub.subscribe(channel, Ear(), kind="shard")
    await one.emit("secret", 1, may_see="ours")
    await one.emit("secret", 1, room="r", may_see="ours")
    await one.emit("end", room="r")
    await one.emit("end")
    await until(lambda: other.got.count('42["end"]') == 2)
    assert member.got.count('42["secret",1]') == 2
    assert other.got.count('42["secret",1]') == 0
    await until(lambda: len(heard) == 2)
    assert not any(b"secret" in payload for payload in heard)


# --- requests --------------------------------------------------------------------------------------------------------


async def test_servers_of_one_process_and_one_client_are_counted_each(redis: Redis, unique: str) -> None:
    servers = [Server(redis, adapter="sharded", channel_prefix=unique) for _ in range(3)]
    for sio in servers:
        await sio.start()
    members = [await attach(sio) for sio in servers]
    assert [await sio.server_count() for sio in servers] == [3, 3, 3]
    assert {socket.id for socket in await servers[0].fetch_sockets()} == {member.sid for member in members}
    await servers[2].aclose()
    async with asyncio.timeout(5):  # its connection to Redis ends, and Redis hears of it when it does
        while (count := await servers[0].server_count()) != 2:
            assert count == 3
            await asyncio.sleep(0.01)
    for sio in servers:
        await sio.aclose()


async def test_what_cannot_travel_is_left_out_of_an_answer_and_not_the_answer(start: Start) -> None:
    one, two = await start(), await start()
    member = await attach(two)
    await two.save_session(member.sid, {"deep": _deep(3_000)})
    two.on_server_side("object", object)
    (found,) = [socket for socket in await one.fetch_sockets() if socket.id == member.sid]
    assert found.data is None
    assert await one.server_side_call("object") == [None]


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


class Process:
    """An instance in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@pytest.fixture
async def process(valkey_url: str, unique: str) -> AsyncIterator[Process]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        script = Path(__file__).parents[1] / "realtime_instance.py"
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            str(listening.fileno()),
            valkey_url,
            unique,
            "Kill",
            "sharded",
            pass_fds=[listening.fileno()],
            stdout=asyncio.subprocess.PIPE,
        )
    assert started.stdout is not None
    async with asyncio.timeout(10):
        while await started.stdout.readline() != b"ready\n":
            assert started.returncode is None
    made = Process(started)
    yield made
    await made.end()


async def test_who_waits_for_a_server_that_is_killed_gets_the_answers_of_the_others_soon(
    start: Start, process: Process
) -> None:
    one, two = await start(), await start()
    members = [await attach(sio) for sio in (one, two)]
    assert await one.server_count() == 3
    process.signal(signal.SIGSTOP)
    asked = asyncio.create_task(one.fetch_sockets(timeout_s=30))
    called = asyncio.create_task(one.server_side_call("nobody handles it", timeout_s=30))
    await until(lambda: two.stats.adapter.published >= 2)  # type: ignore[union-attr] # the other has answered both
    assert not asked.done()
    assert not called.done()
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(5):
        assert {found.id for found in await asked} == {member.sid for member in members}
        assert await called == [None]
    assert await one.server_count() == 2


async def test_who_waits_for_a_server_that_hangs_gets_a_timeout_with_the_answers_of_the_others(
    start: Start, process: Process
) -> None:
    one, two = await start(), await start()
    member = await attach(two)
    process.signal(signal.SIGSTOP)
    with pytest.raises(ClusterTimeout) as caught:
        await one.fetch_sockets(timeout_s=0.7)
    assert (caught.value.expected, caught.value.answered) == (2, 1)
    assert [found.id for found in caught.value.answers] == [member.sid]
    process.signal(signal.SIGCONT)
    assert [found.id for found in await one.fetch_sockets(timeout_s=5)] == [member.sid]


# --- junk ------------------------------------------------------------------------------------------------------------


async def test_junk_on_every_channel_is_counted_and_the_next_broadcast_arrives(
    start: Start, redis: Redis, unique: str
) -> None:
    one, two = await start(), await start()
    member = await attach(two)
    await two.enter_room(member.sid, "r")
    uid = two._core.adapter.uid  # type: ignore[union-attr]
    head = {"uid": "x", "nsp": "/"}
    event, good = {"type": 2, "data": ["e", float("nan")], "nsp": "/"}, {"type": 2, "data": ["e"]}
    junk: list[bytes] = [
        b"",
        b"{",
        b"[" * 50_000,
        b"\xc1",
        b"x" * 10_000,
        b"\xdd\xff\xff\xff\xff",
        json.dumps({**head, "type": 99}).encode(),
        json.dumps({**head, "type": 3}).encode(),
        json.dumps({**head, "type": 3, "data": {"opts": {}, "packet": {"type": 2, "data": []}}}).encode(),
        json.dumps({**head, "type": 3, "data": {"opts": {"rooms": [{}]}, "packet": good}}).encode(),
        msgpack.packb({**head, "type": 3, "data": {"opts": {}, "packet": event}}),
        msgpack.packb({**head, "type": 3, "data": {"opts": {}, "packet": event, "requestId": "q"}}),
        msgpack.packb({**head, "type": 3, "data": {"opts": {}, "packet": event, "requestId": 5}}),
        *(json.dumps({**head, "type": kind, "data": {"opts": {"rooms": []}, "rooms": 5}}).encode() for kind in (4, 5)),
        json.dumps({**head, "type": 6}).encode(),
        json.dumps({**head, "type": 7, "data": {"opts": {}}}).encode(),
        json.dumps({**head, "type": 9, "data": {"packet": {}}}).encode(),
        json.dumps({**head, "type": 8, "data": {"requestId": "q", "sockets": [{}]}}).encode(),
        json.dumps({**head, "type": 11, "data": {"requestId": "q", "clientCount": -1}}).encode(),
        json.dumps({**head, "type": 12, "data": {}}).encode(),
    ]
    harmless = [
        *(json.dumps({**head, "type": kind}).encode() for kind in (1, 2, 13)),
        json.dumps({**head, "nsp": "/other", "type": 3}).encode(),
        json.dumps({**head, "type": 10, "data": {"requestId": "nobody's", "packet": 1}}).encode(),
        json.dumps({**head, "type": 12, "data": {"requestId": "nobody's", "packet": 1}}).encode(),
    ]
    channels = [f"{unique}#/#", f"{unique}#/#{uid}#", f"{unique}-filtered#/#", f"{unique}#/#r#"]
    for channel in channels:
        for payload in (*junk, *harmless):
            assert await redis.execute_command("SPUBLISH", channel, payload) >= 1
    await one.emit("after", 1)
    await until(lambda: member.got[-1:] == ['42["after",1]'])
    assert member.got == ['42["after",1]']
    assert two.stats.adapter.junk == len(junk) * len(channels)  # type: ignore[union-attr]
    assert await one.server_side_call("nobody handles it", timeout_s=5) == [None]


# --- servers that are not what they should be ------------------------------------------------------------------------


async def test_redis_without_sharded_pubsub_is_refused_with_its_version_and_the_cure(unique: str) -> None:
    async with EmbeddedRedis(arguments=["--rename-command", "SSUBSCRIBE", ""]) as server:
        sio = Server(server.url, adapter="sharded", channel_prefix=unique)
        with pytest.raises(ServerTooOld, match=r'SSUBSCRIBE, 7\.0 or newer is needed; or adapter="classic"'):
            await sio.start()
        assert not sio.running
        await sio.aclose()


async def test_old_version_is_refused_before_anything_is_subscribed(redis: Redis, unique: str) -> None:
    sio = Server(redis, adapter="sharded", channel_prefix=unique)
    redis.link.server_version = (6, 2, 14)
    with pytest.raises(ServerTooOld) as caught:
        await sio.start()
    assert (caught.value.version, caught.value.needed, caught.value.cure) == ("6.2.14", "7.0", 'adapter="classic"')
    assert await _channels(redis, unique) == set()


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="sharded_mode"):
        Server(adapter="sharded", sharded_mode="public")


@pytest.mark.faults
async def test_redis_that_goes_and_comes_costs_what_was_sent_meanwhile_and_no_room(
    start: Start, own_valkey: EmbeddedRedis
) -> None:
    one, two = await start(own_valkey.url), await start(own_valkey.url)
    member = await attach(two)
    await two.enter_room(member.sid, "before")
    own_valkey.kill()
    await until(lambda: not (one.stats.adapter.connected or two.stats.adapter.connected))  # type: ignore[union-attr]
    async with asyncio.timeout(3):  # nobody waits for a Redis that is away
        assert await two.enter_room(member.sid, "meanwhile")
        await two.leave_room(member.sid, "before")
        await two.enter_room(member.sid, "before")
        await one.emit("lost", room="before")
        with pytest.raises(LinkUnavailable):
            await one.fetch_sockets()
    await own_valkey.restart()
    await until(lambda: one.stats.adapter.connected and two.stats.adapter.connected)  # type: ignore[union-attr]
    for room in ("before", "meanwhile"):
        await one.emit("again", room, room=room)
    await until(lambda: len(member.got) == 2)
    assert member.got == ['42["again","before"]', '42["again","meanwhile"]']
    assert one.stats.adapter.publish_lost == 1  # type: ignore[union-attr]
    assert two.stats.adapter.gaps == 1  # type: ignore[union-attr]


@contextlib.asynccontextmanager
async def _cluster_node(first: int, last: int) -> AsyncIterator[tuple[EmbeddedRedis, Redis, int]]:
    """A server in cluster mode that has the slots ``first`` to ``last``, its client and the port of its bus."""
    bus_port = free_port()
    async with EmbeddedRedis(arguments=["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]) as server:
        admin = await Redis.from_url(server.url).connect()
        await admin.link.call("CLUSTER", "ADDSLOTSRANGE", first, last)
        yield server, admin, bus_port
        await admin.aclose()


async def _until_whole(admin: Redis) -> None:
    async with asyncio.timeout(20):
        while "cluster_state:ok" not in str(await admin.link.call("CLUSTER", "INFO")):
            await asyncio.sleep(0.01)


async def test_on_a_node_that_is_a_whole_cluster_everything_works(start: Start) -> None:
    async with _cluster_node(0, 16383) as (server, admin, _bus_port):
        await _until_whole(admin)
        one, two = await start(server.url), await start(server.url)
        member = await attach(two)
        for number in range(50):
            await two.enter_room(member.sid, f"room {number}")
            await one.emit("e", number, room=f"room {number}")
        await one.emit("end")
        await until(lambda: '42["end"]' in member.got)
        assert len(member.got) == 51
        assert [found.id for found in await one.fetch_sockets()] == [member.sid]
        await one.aclose()
        await two.aclose()


async def test_on_one_of_several_nodes_the_start_is_refused_with_the_cure(unique: str) -> None:
    async with _cluster_node(0, 8191) as (server, admin, _), _cluster_node(8192, 16383) as (second, _admin, bus_port):
        await admin.link.call("CLUSTER", "MEET", "127.0.0.1", second.port, bus_port)
        await _until_whole(admin)
        sio = Server(server.url, adapter="sharded", channel_prefix=unique)
        with pytest.raises(ConfigError, match=r'"classic" on a Redis Cluster of several nodes \(this one has 2\)'):
            await sio.start()
        await sio.aclose()
        for _ in range(4):  # the lease's key may belong to either node
            classic = Server(server.url, adapter="classic", channel_prefix=unique)
            await classic.start()
            await classic.aclose()


@pytest.mark.parametrize(
    ("adapter", "commands"),
    [
        ("classic", "+publish +psubscribe +punsubscribe +pubsub"),
        ("sharded", "+spublish +ssubscribe +sunsubscribe +pubsub"),
        ("sharded", "+spublish +ssubscribe +sunsubscribe +pubsub +cluster|slots"),
        (
            "streams",
            "+publish +pubsub +xadd +xread +xrange +xrevrange +xtrim +xlen +xinfo +time",
        ),
    ],
)
async def test_redis_user_of_the_documented_rights_is_enough(
    redis: Redis, valkey_url: str, unique: str, adapter: str, commands: str
) -> None:
    basic = ["on", ">secret", "-@all", "+hello", "+auth", "+ping", "+subscribe", "+unsubscribe", "resetchannels"]
    channels = [
        f"&{unique}*",
        f"&{unique}#/#*",
        f"&{{{unique}}}:people:*",
    ]  # for patterns ACLs compare letter by letter
    rights = [*basic, *channels, f"~{unique}", *commands.split()]
    await redis.execute_command("ACL", "SETUSER", unique, *rights)
    url = valkey_url.replace("redis://", f"redis://{unique}:secret@")
    options = {"adapter": adapter, "channel_prefix": unique, "stream_name": unique, "recovery_s": None, "relay": False}
    one, two = Server(url, **options), Server(url, **options)
    await one.start()
    await two.start()
    member = await attach(two)
    await two.enter_room(member.sid, "r")
    await one.emit("e", 1, room="r")
    await until(lambda: member.got == ['42["e",1]'])
    await two.leave_room(member.sid, "r")
    assert [found.id for found in await one.fetch_sockets()] == [member.sid]
    if adapter == "streams":
        await one._core.adapter._keep_up()  # type: ignore[union-attr]
    await one.aclose()
    await two.aclose()
    await redis.execute_command("ACL", "DELUSER", unique)
