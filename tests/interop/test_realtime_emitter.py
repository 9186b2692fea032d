"""Emitters: ours to Flotta and Node servers over each adapter, async and plain; the official one to Flotta."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from flotta.errors import ConfigError, LinkUnavailable
from flotta.realtime import Emitter, EmitterOptions, SyncEmitter
from flotta.realtime.adapters import Broadcast, Target
from flotta.realtime.emitter.commands import Words
from flotta.redis import LinkOptions, PlainRedis, Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import NodePeer, node, node_modules, start_node, until
from realtime_fleet import ADAPTERS, BLOB, Fleet, fleet_of

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node


class Say(Protocol):
    """Calls one method of an emitter, whichever kind it is."""

    async def __call__(self, method: str, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def fleet(adapter: str, node: NodePeer, valkey_url: str, unique: str) -> AsyncIterator[Fleet]:
    async with fleet_of(adapter, valkey_url, unique, node) as made:
        yield made


@pytest.fixture(params=["async", "sync"])
async def say(
    request: pytest.FixtureRequest, adapter: str, valkey_url: str, unique: str, redis: Redis
) -> AsyncIterator[Say]:
    options: dict[str, Any] = {"adapter": adapter, "channel_prefix": unique, "stream_name": unique}
    if request.param == "async":
        async with Emitter(redis, **options) as emitter:
            yield lambda method, *args, **kwargs: getattr(emitter, method)(*args, **kwargs)
        assert await redis.ping()  # a client that is given stays open
    else:
        with SyncEmitter(valkey_url, **options) as plain:
            yield lambda method, *args, **kwargs: asyncio.to_thread(getattr(plain, method), *args, **kwargs)


async def test_events_reach_the_clients_that_are_meant_on_every_server_once(fleet: Fleet, say: Say) -> None:
    peer, one, two, sids = fleet
    for sio, name in ((one, "one"), (two, "two")):
        await sio.enter_room(sids[name], "user:ada")
    await say("emit", "all", ("x", BLOB, {"n": [1.5, None]}))
    await say("emit", "room", 1, room="r")
    await say("emit", "two rooms", 2, room=["nobody", "r"], skip_sid=[sids["two"]])
    await say("emit", "direct", 3, to=sids["node"])
    await say("emit", "user", 4, user="ada")
    await say("emit", "nobody", 5, room=[])
    await say("emit", "other namespace", 6, namespace="/nowhere")
    await say("emit", "end")
    for name in sids:
        await peer.wait_event(name, "end")
    expected = {"one": ["user"], "two": ["user"], "node": ["direct"]}
    for name in sids:
        got = [args[0] for args in peer.seen(name, "event") if args[0] not in {"settle", "settle-node", "end"}]
        all_got = ["all", "room", *expected[name]] + (["two rooms"] if name != "two" else [])
        assert sorted(got) == sorted(all_got), name
        assert peer.events(name, "all") == [["x", BLOB, {"n": [1.5, None]}]]
    await say("emit", "volatile", 7, volatile=True)
    for name in sids:
        assert await peer.wait_event(name, "volatile") == [[7]]


async def test_orders_and_server_events_reach_every_server(fleet: Fleet, say: Say) -> None:
    peer, one, two, sids = fleet
    await say("sockets_join", ["a", "b"], room="r", skip_sid=sids["two"])
    await until(lambda: {"a", "b"} <= set(one.rooms(sids["one"])))
    await say("sockets_leave", "b", room="a")
    await until(lambda: "b" not in one.rooms(sids["one"]))
    await say("server_side_emit", "told", "x", BLOB)
    assert await peer.wait("server", "told") == [["x", BLOB]]
    await until(lambda: one.told == two.told == [["x", BLOB]])  # type: ignore[attr-defined]
    found = {socket.id: socket.rooms for socket in await two.fetch_sockets(room="a")}
    assert found == {sids[name]: {sids[name], "r", "a"} for name in ("one", "node")}
    await say("disconnect_sockets", room="a")
    for name in ("one", "node"):
        assert await peer.wait(name, "disconnect") == [["io server disconnect"]]
    await say("disconnect_sockets", to=sids["two"], close=True)
    await peer.wait("two", "disconnect")


async def test_filtered_events_reach_no_node_server(fleet: Fleet, say: Say) -> None:
    peer, one, two, sids = fleet
    one.may_see("everybody")(lambda sid, session, value: True)
    two.may_see("everybody")(lambda sid, session, value: False)
    await say("emit", "secret", 1, may_see="everybody")
    await say("emit", "end")
    for name in sids:
        await peer.wait_event(name, "end")
    assert [peer.events(name, "secret") for name in ("one", "two", "node")] == [[[1]], [], []]


async def test_what_cannot_travel_is_refused_where_it_is_said(say: Say) -> None:
    for event, data, kind in (("connect", 1, ValueError), ("e", object(), TypeError), ("e", float("nan"), ValueError)):
        with pytest.raises(kind):
            await say("emit", event, data)
    with pytest.raises(ValueError, match="connection"):
        await say("server_side_emit", "connection")


@pytest.mark.parametrize("wrong", [{"adapter": "carrier pigeons"}, {"sharded_mode": "x"}, {"stream_maxlen": 0}])
def test_wrong_options_are_refused_at_birth(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SyncEmitter("redis://localhost", **wrong)
    with pytest.raises(ConfigError):
        SyncEmitter("no url")


@pytest.mark.parametrize(
    ("options", "rooms", "channel"),
    [
        ({"adapter": "classic"}, ("r",), b"socket.io#/n#r#"),
        ({"adapter": "classic"}, ("r", "s"), b"socket.io#/n#"),
        ({"adapter": "sharded"}, ("r",), b"socket.io#/n#r#"),
        ({"adapter": "sharded"}, ("r", "s"), b"socket.io#/n#"),
        ({"adapter": "sharded"}, ("A" * 20,), b"socket.io#/n#"),
        ({"adapter": "sharded", "sharded_mode": "dynamic-private"}, ("A" * 20,), b"socket.io#/n#" + b"A" * 20 + b"#"),
        ({"adapter": "sharded", "sharded_mode": "static"}, ("r",), b"socket.io#/n#"),
        ({"adapter": "streams", "stream_name": "events"}, ("r",), "events"),
    ],
)
def test_events_are_said_where_only_those_listen_whom_they_may_concern(
    options: dict[str, Any], rooms: tuple[str, ...], channel: bytes | str
) -> None:
    words = Words(EmitterOptions(**options)).broadcast(Broadcast(Target("/n", rooms), ["e"]))
    verbs = {"classic": "PUBLISH", "sharded": "SPUBLISH", "streams": "XADD"}
    assert words[:2] == [verbs[options["adapter"]], channel]


# --- other processes -------------------------------------------------------------------------------------------------

PREFORK = """
import os, sys, threading
from flotta.realtime import SyncEmitter

emitter = SyncEmitter(sys.argv[1], channel_prefix=sys.argv[2])
emitter.emit("n", "parent before")

def say_all(worker):
    for number in range(20):
        emitter.emit("n", f"{worker}.{number}")

children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        threads = [threading.Thread(target=say_all, args=(f"{child}.{thread}",)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os._exit(0)
    children.append(pid)
say_all("parent")
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
emitter.emit("n", "parent after")
emitter.close()
"""


async def test_forked_workers_and_their_threads_say_everything_once(
    node: NodePeer, valkey_url: str, unique: str
) -> None:
    async with fleet_of("classic", valkey_url, unique, node) as fleet:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", PREFORK, valkey_url, unique, stderr=subprocess.PIPE
        )
        _, complaint = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, complaint.decode()
        expected = {"parent before", "parent after", *(f"parent.{number}" for number in range(20))}
        expected |= {f"{child}.{thread}.{n}" for child in range(3) for thread in range(3) for n in range(20)}
        for name in fleet.sids:
            got = [args[0] for args in await node.wait_event(name, "n", len(expected))]
            assert len(got) == len(expected)
            assert set(got) == expected


BARE = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"uvicorn", "websockets", "starlette", "httptools", "psycopg", "uvloop"}:
            raise ImportError(name)

sys.meta_path.insert(0, Bare())
from flotta.realtime import Emitter, SyncEmitter
"""


def test_emitters_need_nothing_of_a_web_server() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", BARE], check=True, timeout=30)


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - the base class's name


@contextmanager
def _wsgi(app: Callable[..., Iterable[bytes]]) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, server_class=_Threads, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_wsgi_requests_of_many_threads_share_one_emitter(node: NodePeer, valkey_url: str, unique: str) -> None:
    with SyncEmitter(valkey_url, channel_prefix=unique) as emitter:

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            emitter.emit("order", environ["PATH_INFO"], room="r")
            start_response("204 No Content", [])
            return []

        async with fleet_of("classic", valkey_url, unique, node) as fleet:
            with _wsgi(app) as url:

                def get(number: int) -> None:
                    urllib.request.urlopen(f"{url}/{number}", timeout=10).close()

                await asyncio.gather(*(asyncio.to_thread(get, number) for number in range(24)))
            for name in fleet.sids:
                got = await node.wait_event(name, "order", 24)
                assert sorted(args[0] for args in got) == sorted(f"/{number}" for number in range(24))


# --- Redis goes away -------------------------------------------------------------------------------------------------


@pytest.mark.faults
async def test_emitters_outlive_a_restart_of_redis(node: NodePeer, own_valkey: EmbeddedRedis, unique: str) -> None:
    with SyncEmitter(own_valkey.url, channel_prefix=unique) as plain:
        async with (
            fleet_of("classic", own_valkey.url, unique, node) as fleet,
            Emitter(own_valkey.url, channel_prefix=unique) as emitter,
        ):
            one = fleet.one
            await asyncio.to_thread(plain.emit, "before", 1)
            await emitter.emit("before", 2)
            await node.wait_event("two", "before", 2)
            own_valkey.kill()
            waiting = [asyncio.create_task(asyncio.to_thread(plain.emit, "lost", 1))]
            await until(lambda: not one.stats.adapter.connected)
            await own_valkey.restart()
            await asyncio.gather(*waiting)  # it found the server again by itself; who is not there again hears nothing
            await until(lambda: one.stats.adapter.connected and fleet.two.stats.adapter.connected)
            await asyncio.to_thread(plain.emit, "after", 1)
            await emitter.emit("after", 2)
            assert await node.wait_event("one", "after", 2) == [[1], [2]]
            assert await node.wait_event("two", "after", 2) == [[1], [2]]


@pytest.mark.faults
async def test_plain_client_says_whether_a_command_can_have_run(own_valkey: EmbeddedRedis) -> None:
    client = PlainRedis(own_valkey.url, options=LinkOptions(command_timeout_s=2.0))
    assert await asyncio.to_thread(client.call, "PING") == b"PONG"
    own_valkey.kill()
    with pytest.raises(LinkUnavailable):
        await asyncio.to_thread(client.call, "PING")
    await own_valkey.restart()
    assert await asyncio.to_thread(client.call, "PING") == b"PONG"
    client.close()


# --- the official emitter --------------------------------------------------------------------------------------------


async def test_official_emitter_does_everything_it_can_with_flotta(
    node: NodePeer, valkey_url: str, unique: str
) -> None:
    async with fleet_of("classic", valkey_url, unique, node) as fleet:
        peer, one, two, sids = fleet

        def official(**fields: Any) -> Awaitable[Any]:
            return peer.do("emitter", redis=valkey_url, key=unique, **fields)

        await official(room="r", args=["to room", BLOB], **{"except": [sids["two"]]})
        await official(args=["to all", 1])
        for name in sids:
            assert await peer.wait_event(name, "to all") == [[1]]
        assert [peer.events(name, "to room") for name in sids] == [[[BLOB]], [], [[BLOB]]]
        await official(act="socketsJoin", room="r", args=["late"])
        await until(lambda: "late" in one.rooms(sids["one"]) and "late" in two.rooms(sids["two"]))
        await official(act="socketsLeave", room=sids["one"], args=["late"])
        await until(lambda: "late" not in one.rooms(sids["one"]))
        await official(act="serverSideEmit", args=["told", 1, "x"])
        await until(lambda: one.told == two.told == [[1, "x"]])  # type: ignore[attr-defined]
        await official(act="disconnectSockets", room="late", args=[True])
        await peer.wait("two", "disconnect")
        await peer.wait("node", "disconnect")
        assert one.is_connected(sids["one"])
