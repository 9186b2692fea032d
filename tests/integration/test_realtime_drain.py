"""The end of serving: what clients on each transport hear, how long it may take, and what can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import httpx
import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.realtime import Server
from realtime_fixtures import native, serving, until

__all__ = ["native"]

WS = "/socket.io/?EIO=4&transport=websocket"
POLL = "/socket.io/?EIO=4&transport=polling"


async def test_polling_client_gets_a_close_and_holds_no_shutdown_up() -> None:
    sio = Server(drain_clients_per_s=1_000)
    gone: list[str] = []
    sio.on("disconnect", lambda sid, reason: gone.append(reason))
    began = 0.0
    async with httpx.AsyncClient() as http:
        async with serving(sio, native=True, drain=False) as port:
            base = f"http://127.0.0.1:{port}"
            urls = []
            for _ in range(3):
                opened = await http.get(base + POLL)
                urls.append(f"{base}{POLL}&sid={json.loads(opened.text[1:])['sid']}")
                await http.post(urls[-1], content="40")
                await http.get(urls[-1])
            waiting = [asyncio.create_task(http.get(url, timeout=20)) for url in urls[:2]]  # the third is between two
            await until(lambda: sum(c.transport.getting for c in sio._core.clients.values()) == 2)
            began = time.monotonic()
            draining = asyncio.create_task(sio.drain(10.0))
            assert [(await asyncio.wait_for(got, 5)).text for got in waiting] == ["1", "1"]
            await draining
            assert (await http.get(urls[2])).text == "1"
            for url in urls:
                assert (await http.get(url)).json() == {"code": 1, "message": "Session ID unknown"}
            assert (await http.get(base + POLL)).status_code == 503
        assert time.monotonic() - began < 3.0
    assert gone == ["server draining"] * 3


async def test_each_client_is_told_when_it_would_best_come_back_if_that_is_asked_for(native: bool) -> None:
    sio = Server(drain_event="bye", drain_clients_per_s=10)

    @sio.on("connect", namespace="/other")
    async def connect(sid: str) -> None: ...

    async with serving(sio, native=native) as port:
        sockets = [await ws_connect(f"ws://127.0.0.1:{port}{WS}") for _ in range(10)]
        for socket in sockets:
            await socket.send("40")
            await socket.recv()
            assert "sid" in str(await socket.recv())
        await sockets[0].send("40/other,")
        await sockets[0].recv()
        draining = asyncio.create_task(sio.drain(5.0))
        hints = []
        for number, socket in enumerate(sockets):
            told: list[str] = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    told.append(str(await socket.recv()))
            assert len(told) == (2 if number == 0 else 1)
            assert told[0].startswith('42["bye",')
            hints.append(json.loads(told[0][2:])[1]["reconnectInMs"])
            assert socket.close_code == 1012
        await draining
        assert len(set(hints)) > 5
        assert all(0 <= hint <= 1_000 for hint in hints)


async def test_who_connects_while_the_drain_begins_is_sent_away_or_refused(native: bool) -> None:
    """A storm of clients that are in every step of their coming."""
    sio = Server(drain_clients_per_s=1_000)
    began = asyncio.Event()
    comers = 0

    @sio.event
    async def connect(sid: str) -> None:
        nonlocal comers
        comers += 1
        if comers == 20:
            sio._core.begin_drain(5.0)
            began.set()
        await asyncio.sleep(0.02)

    ends: list[int | str] = []

    async def come(port: int) -> None:
        try:
            async with ws_connect(f"ws://127.0.0.1:{port}{WS}", open_timeout=10) as socket:
                await socket.send("40")
                while True:
                    await socket.recv()
        except ConnectionClosed as closed:
            ends.append(closed.rcvd.code if closed.rcvd else "lost")
        except Exception as refused:  # noqa: BLE001 - what the handshake of this client raises
            ends.append(getattr(getattr(refused, "response", None), "status_code", type(refused).__name__))

    async with serving(sio, native=native) as port:
        storm = [asyncio.create_task(come(port)) for _ in range(150)]
        await began.wait()
        storm += [asyncio.create_task(come(port)) for _ in range(20)]
        await asyncio.wait_for(sio.drain(5.0), 6.0)
        await until(lambda: all(task.done() for task in storm))
        assert sio.stats.connections == 0
        assert set(ends) <= {1012, 503, 1008}
        assert ends.count(503) + ends.count(1008) >= 20
        assert 1012 in ends
        assert sio.stats.handlers_running == 0


async def test_handler_that_does_not_end_is_cancelled_after_the_deadline(native: bool) -> None:
    sio = Server()
    began, ended = asyncio.Event(), asyncio.Event()

    @sio.event
    async def work(sid: str) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(sio, native=native) as port:
        socket = await ws_connect(f"ws://127.0.0.1:{port}{WS}")
        await socket.recv()
        await socket.send("40")
        await socket.recv()
        await socket.send('42["work"]')
        await began.wait()
        started = time.monotonic()
        await sio.drain(0.5)
        assert 0.4 < time.monotonic() - started < 3.0
        assert not ended.is_set()
        await socket.wait_closed()
        assert socket.close_code == 1012
    assert ended.is_set()


@pytest.mark.parametrize("clients", [1, 100])
async def test_drain_takes_no_more_than_its_part_of_the_deadline_however_slow_it_may_be(clients: int) -> None:
    sio = Server(drain_clients_per_s=1.0)
    async with serving(sio, native=True) as port:
        sockets = [await ws_connect(f"ws://127.0.0.1:{port}{WS}") for _ in range(clients)]
        started = time.monotonic()
        await sio.drain(1.0)
        assert time.monotonic() - started < 3.0  # a hundred would take 100 s
        assert sio.stats.connections == 0
        for socket in sockets:
            await socket.close()
