"""Polling requests of sessions that another instance holds, one by one, on a real Redis and real web servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from flotta.realtime import Server
from flotta.realtime.relay import leases
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import serving, until

ORIGIN = "https://app.example.com"


class Pair(NamedTuple):
    """Two instances: sessions are opened at the first and asked for at the second."""

    home: Server
    there: Server
    home_url: str
    there_url: str
    http: httpx.AsyncClient
    clients: list[Redis]

    async def open(self) -> str:
        """A session at home; its id."""
        answer = await self.http.get(self.home_url)
        return str(json.loads(answer.text[1:])["sid"])

    async def join(self) -> str:
        """One that is in the default namespace, by requests to the other instance."""
        sid = await self.open()
        assert (await self.post(sid, "40")).text == "ok"
        assert (await self.get(sid)).text.startswith("40{")
        return sid

    async def get(self, sid: str, **headers: str) -> httpx.Response:
        return await self.http.get(f"{self.there_url}&sid={sid}", headers=headers)

    async def post(self, sid: str, body: str | bytes, **headers: str) -> httpx.Response:
        return await self.http.post(f"{self.there_url}&sid={sid}", content=body, headers=headers)


@asynccontextmanager
async def pair(url: str, prefix: str, *, far_url: str | None = None, **options: Any) -> AsyncIterator[Pair]:
    """``far_url``: the second instance's way to the same Redis."""
    async with AsyncExitStack() as stack:
        servers, urls, clients = [], [], []
        for name, redis_url in (("home", url), ("ther", far_url or url)):
            redis = await Redis.from_url(redis_url).connect()
            stack.push_async_callback(redis.aclose)
            sio = Server(redis, channel_prefix=prefix, instance=name, **options)
            sio.on("echo", lambda sid, *data: data)
            port = await stack.enter_async_context(serving(sio, native=False))
            servers.append(sio)
            clients.append(redis)
            urls.append(f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling")
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=20.0))
        yield Pair(servers[0], servers[1], urls[0], urls[1], http, clients)


async def test_relayed_requests_read_like_direct_ones(valkey_url: str, unique: str) -> None:
    async with pair(valkey_url, unique, cors_origins=(ORIGIN,), cookie="io") as two:
        sid = await two.join()
        body = '421["echo",1]\x1e451-2["echo",{"_placeholder":true,"num":0}]\x1eb//8='
        relayed = await two.post(sid, body, origin=ORIGIN)
        direct = await two.http.post(
            f"{two.home_url}&sid={sid}", content="421" + '["echo",3]', headers={"origin": ORIGIN}
        )
        for answer in (relayed, direct):
            assert (answer.status_code, answer.text) == (200, "ok")
        keep = (
            "content-type",
            "cache-control",
            "vary",
            "access-control-allow-origin",
            "access-control-allow-credentials",
        )
        assert [relayed.headers.get(name) for name in keep] == [direct.headers.get(name) for name in keep]
        assert relayed.headers["access-control-allow-origin"] == ORIGIN
        assert "set-cookie" not in relayed.headers  # who opens a session is told its instance, nobody else
        answer = await two.get(sid)
        assert answer.text == '431[1]\x1e461-2[{"_placeholder":true,"num":0}]\x1eb//8=\x1e431[3]'
        waiting = asyncio.create_task(two.get(sid))
        await until(lambda: two.there.stats.relay.waiting == 1)
        await two.there.emit("news", b"\x01")
        assert (await waiting).text == '451-["news",{"_placeholder":true,"num":0}]\x1ebAQ=='
        assert two.home.stats.relay.served == two.there.stats.relay.asked == 5


async def test_rules_are_applied_where_the_request_arrives_and_by_the_holder(valkey_url: str, unique: str) -> None:
    async with pair(valkey_url, unique, payload_bytes_max=1_000) as two:
        sid = await two.join()
        asked = two.there.stats.relay.asked
        for change, code in (("EIO=4", 5), ("transport=polling", 0)):
            wrong = two.there_url.replace(change, change.replace("4", "3").replace("polling", "pigeon"))
            assert (await two.http.get(f"{wrong}&sid={sid}")).json()["code"] == code
        assert (await two.get(sid, origin="https://evil.example")).json()["code"] == 4
        assert (await two.http.put(f"{two.there_url}&sid={sid}")).json()["code"] == 2
        assert (await two.post(sid, b"4" * 1_001)).status_code == 413
        for unknown in ("home", "nope" + "x" * 16, "x" * 20 + "y", "nop*" + "x" * 16, "home" + "x" * 16):
            assert (await two.get(unknown)).json() == {"code": 1, "message": "Session ID unknown"}
        assert two.there.stats.relay.asked == asked + 2  # only what may be a session's id is asked for
        assert (await two.post(sid, "junk")).json()["code"] == 3  # which the holder says, and ends the session
        assert (await two.get(sid)).json()["code"] == 1
        assert two.home.stats.ended == {"parse error": 1}


async def test_second_relayed_get_and_a_client_that_leaves_end_the_session(valkey_url: str, unique: str) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        first = asyncio.create_task(two.get(sid))
        await until(lambda: two.there.stats.relay.waiting == 1)
        assert (await two.http.get(f"{two.home_url}&sid={sid}")).status_code == 400
        assert (await first).text == "1"
        other = await two.join()
        hanging = asyncio.create_task(two.get(other))
        await until(lambda: two.there.stats.relay.waiting == 1)
        hanging.cancel()
        await until(lambda: two.home.stats.connections == 0)
        assert two.home.stats.ended == {"transport error": 2}
        assert two.there.stats.relay.waiting == 0


@pytest.mark.parametrize("way", ["killed", "hung"])
async def test_holder_that_dies_while_a_get_waits_is_noticed(
    valkey_url: str, unique: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    monkeypatch.setattr(leases, "TTL_S", 1.5)
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        waiting = asyncio.create_task(two.get(sid))
        await until(lambda: two.there.stats.relay.waiting == 1)
        if way == "killed":  # its connections are closed by the kernel
            await two.clients[0].hub.aclose()
            await two.clients[0].link.aclose(drain_s=0.0)
        else:  # its connections stay, nothing refreshes the lease
            await two.home._relay._leases.aclose()  # type: ignore[union-attr]
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.json() == {"code": 1, "message": "Session ID unknown"}
        if way == "killed":  # and from now on at once
            asked_at_s = asyncio.get_running_loop().time()
            assert (await two.post(sid, "3")).json()["code"] == 1
            assert asyncio.get_running_loop().time() - asked_at_s < 1.5  # less than it takes to judge a lease


async def test_without_redis_who_polls_elsewhere_is_told_to_try_again_and_own_sessions_go_on(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    async with pair(own_valkey.url, unique) as two:
        sid = await two.join()
        waiting = asyncio.create_task(two.get(sid))
        await until(lambda: two.there.stats.relay.waiting == 1)
        own_valkey.kill()
        assert (await asyncio.wait_for(waiting, 10)).status_code == 503
        refused = await two.get(sid)
        assert refused.status_code == 503
        assert refused.json()["code"] == 4
        own = await two.open()
        assert (await two.http.post(f"{two.home_url}&sid={own}", content="40")).text == "ok"
        await own_valkey.restart()
        await until(lambda: two.there.stats.adapter.connected and two.home.stats.adapter.connected, 20)
        async with asyncio.timeout(10):  # who asks before all have heard that all are back is told to try again
            while (answer := await two.post(later := await two.open(), "40")).status_code == 503:
                await asyncio.sleep(0.01)
        assert answer.text == "ok"
        assert (await two.get(later)).text.startswith("40{")
        assert (await two.post(later, '421["echo",1]')).text == "ok"


async def test_drain_of_the_instance_that_waits_lets_polls_come_back_and_the_session_lives_on(
    valkey_url: str, unique: str
) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        waiting = asyncio.create_task(two.get(sid))
        await until(lambda: two.there.stats.relay.waiting == 1)
        await two.there.drain(0.1)
        assert (await waiting).text == "6"
        assert (await two.get(sid)).text == "6"  # and whoever still asks here need not wait
        await two.home.emit("here")
        assert (await two.http.get(f"{two.home_url}&sid={sid}")).text == '42["here"]'


async def test_websocket_of_a_foreign_session_is_refused_where_it_cannot_be_served(
    valkey_url: str, unique: str
) -> None:
    async with pair(valkey_url, unique) as two:
        url = two.there_url.replace("http", "ws", 1).replace("polling", "websocket")
        async with ws_connect(f"{url}&sid=nope{'x' * 16}") as unknown:
            with contextlib.suppress(ConnectionClosed):
                await unknown.recv()
            assert unknown.close_code == 1012
        sid = await two.join()
        with pytest.raises(InvalidStatus):
            await ws_connect(f"{url}&sid={sid}", origin="https://evil.example")  # type: ignore[arg-type]
        await two.there.drain(0.1)
        with pytest.raises(InvalidStatus):
            await ws_connect(f"{url}&sid={sid}")
        assert two.home.stats.connections == 1


async def test_failed_probe_leaves_the_session_polling(valkey_url: str, unique: str) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        url = two.there_url.replace("http", "ws", 1).replace("polling", "websocket")
        async with ws_connect(f"{url}&sid={sid}") as websocket:
            await websocket.send("2probe")
            assert await websocket.recv() == "3probe"
            await websocket.send("4junk")
            with contextlib.suppress(ConnectionClosed):
                await websocket.recv()
        await two.home.emit("still")
        assert (await two.get(sid)).text == '42["still"]'
        await until(lambda: two.there.stats.relay.tunnels == two.home.stats.relay.tunnels == 0)


async def test_without_relay_foreign_sessions_are_unknown_and_the_log_says_once_why(
    valkey_url: str, unique: str
) -> None:
    with capture_logs() as told:
        async with pair(valkey_url, unique, relay=False, transports=("polling", "websocket")) as two:
            sid = await two.open()
            for _ in range(2):
                assert (await two.get(sid)).json()["code"] == 1
            own = two.there.stats.instance + sid[4:]  # one that has ended: nothing to tell
            assert (await two.get(own)).json()["code"] == 1
            assert two.there.stats.relay is None
    (line,) = [line for line in told if line["log_level"] == "warning" and "another process" in line["event"]]
    assert "one Redis" in line["cure"]
