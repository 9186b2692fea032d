"""What a client sends right behind its CONNECT, without waiting for the answer: it waits for the connect handler."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.errors import ConnectRefused
from flotta.realtime import Server
from realtime_fixtures import native, serving, until
from realtime_moves import Wanderer, move, world
from realtime_recovery_places import Place, connections, gone, one, place, two
from realtime_recovery_stage import Raw

__all__ = ["connections", "native", "one", "two"]

PLACE = '{"_placeholder":true,"num":0}'
LEFT = ("left", "client namespace disconnect")


class Stage:
    """A server whose connect handler waits at a gate, and what its handlers were called with."""

    def __init__(self, namespace: Any = "/", **options: Any) -> None:
        self.sio = Server(**options)
        self.gate = asyncio.Event()
        self.seen: list[Any] = []
        self.answer: Any = None
        """What the connect handler does in the end: gives this, or raises it."""
        lead = 0 if namespace == "/" else 1
        self.sio.on("connect", lambda *args: self._connect(args[lead]), namespace=namespace)
        self.sio.on("echo", lambda *args: self._echo(*args[lead + 1 :]), namespace=namespace)
        self.sio.on("disconnect", lambda *args: self.seen.append(("left", str(args[-1]))), namespace=namespace)

    async def _connect(self, sid: str) -> Any:
        self.seen.append("connect")
        await self.gate.wait()
        self.seen.append("decided")
        if isinstance(self.answer, Exception):
            raise self.answer
        return await self.answer(sid) if callable(self.answer) else self.answer

    async def _echo(self, *values: Any) -> Any:
        self.seen.append(values[0])
        await asyncio.sleep(0)
        return values

    @property
    def waiting(self) -> int:
        """Events that wait for the connect handler."""
        sockets = [socket for client in self.sio._core.clients.values() for socket in client.sockets.values()]
        return sum(len(socket.backlog or ()) for socket in sockets)

    async def decide(self, answer: Any = None) -> None:
        """Let the connect handler end."""
        self.answer = answer
        self.gate.set()
        await until(lambda: not self.sio.stats.handlers_running)


async def _open(port: int) -> ClientConnection:
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket")
    assert str(await socket.recv()).startswith("0{")
    return socket


async def _next(socket: ClientConnection) -> str | bytes:
    return await asyncio.wait_for(socket.recv(), 5)


@pytest.mark.parametrize("handlers_max", [1, 3])
async def test_they_are_handled_in_order_after_the_connect_handler(native: bool, handlers_max: int) -> None:
    stage = Stage(handlers_max=handlers_max)
    async with serving(stage.sio, native=native) as port:
        socket = await _open(port)
        for packet in ("40", '421["echo",1]', f'451-2["echo",{PLACE}]', b"\x01", '423["echo",3]', '424["echo",4]'):
            await socket.send(packet)
        await until(lambda: stage.waiting == 4)
        assert stage.seen == ["connect"]
        await stage.decide()
        assert stage.seen == ["connect", "decided", 1, b"\x01", 3, 4]
        got = [await _next(socket) for _ in range(6)]
        assert str(got[0]).startswith('40{"sid":')
        assert got[1:] == ["431[1]", f"461-2[{PLACE}]", b"\x01", "433[3]", "434[4]"]
        await socket.send('425["echo",5]')
        assert await _next(socket) == "435[5]"
        await socket.close()


async def test_so_many_are_handled_at_once_as_others() -> None:
    stage, together = Stage(handlers_max=3), asyncio.Barrier(3)
    stage.sio.on("meet", lambda sid: together.wait())
    async with serving(stage.sio, native=True) as port:
        socket = await _open(port)
        for packet in ("40", *['42["meet"]'] * 6):
            await socket.send(packet)
        await until(lambda: stage.waiting == 6)
        await stage.decide()  # hangs unless three meet, twice
        await socket.close()


async def test_with_a_refusal_they_fall_silently_and_behind_it_they_end_the_connection(native: bool) -> None:
    stage = Stage()
    async with serving(stage.sio, native=native) as port:
        socket = await _open(port)
        for packet in ("40", '421["echo",1]', '42["echo",2]'):
            await socket.send(packet)
        await until(lambda: stage.waiting == 2)
        await stage.decide(ConnectRefused("not you"))
        assert await _next(socket) == '44{"message":"not you"}'
        stage.answer = None
        await socket.send("40")
        assert str(await _next(socket)).startswith("40{")
        assert stage.seen == ["connect", "decided", "connect", "decided"]
        stage.answer = ConnectRefused("not you")
        other = await _open(port)
        await other.send("40")
        assert await _next(other) == '44{"message":"not you"}'
        await other.send('421["echo",1]')
        with pytest.raises(ConnectionClosed):
            await _next(other)
        await socket.close()


async def test_who_leaves_right_behind_them_has_said_them_and_who_is_sent_away_has_not(native: bool) -> None:
    stage = Stage()
    async with serving(stage.sio, native=native) as port:
        socket = await _open(port)
        for packet in ("40", '421["echo",1]', '422["echo",2]', "41"):
            await socket.send(packet)
        await until(lambda: stage.seen and not stage.sio.stats.sockets)
        await stage.decide()
        assert stage.seen == ["connect", "decided", 1, 2, LEFT]
        stage.seen.clear()
        stage.gate.clear()
        for packet in ("40", '421["echo",1]'):
            await socket.send(packet)
        await until(lambda: stage.waiting == 1)
        await stage.decide(stage.sio.disconnect)
        assert await _next(socket) == '44{"message":"disconnected by the server"}'
        assert stage.seen == ["connect", "decided", ("left", "server namespace disconnect")]
        await socket.close()


async def test_one_of_them_may_bring_the_end_of_those_behind_it() -> None:
    stage = Stage()
    stage.sio.on("kick", stage.sio.disconnect)
    async with serving(stage.sio, native=True) as port:
        socket = await _open(port)
        for packet in ("40", '42["echo",1]', '42["kick"]', '42["echo",2]'):
            await socket.send(packet)
        await until(lambda: stage.waiting == 3)
        await stage.decide()
        assert stage.seen == ["connect", "decided", 1, ("left", "server namespace disconnect")]
        assert str(await _next(socket)).startswith("40{")
        assert await _next(socket) == "41"
        await socket.close()


async def test_an_answer_to_an_earlier_connection_is_dropped_there() -> None:
    stage = Stage()
    async with serving(stage.sio, native=True) as port:
        socket = await _open(port)
        for packet in ("40", '431["late"]', '421["echo",1]'):
            await socket.send(packet)
        await until(lambda: stage.waiting == 1)
        await stage.decide()
        assert str(await _next(socket)).startswith("40{")
        assert await _next(socket) == "431[1]"
        await socket.close()


@pytest.mark.parametrize("refused", [False, True])
async def test_so_many_wait_as_behind_a_handler_then_the_client_is_read_no_further(native: bool, refused: bool) -> None:
    stage = Stage(namespaces=("/second",), backlog_max=4)
    stage.sio.on("echo", lambda sid, value: value, namespace="/second")
    async with serving(stage.sio, native=native) as port:
        socket = await _open(port)
        await socket.send("40/second,")
        assert str(await _next(socket)).startswith("40/second,{")
        for packet in ("40", *(f'42["echo",{number}]' for number in range(4 if refused else 20))):
            await socket.send(packet)
        await socket.send('42/second,1["echo",1]')
        (client,) = stage.sio._core.clients.values()
        await until(lambda: client.pauses)
        assert stage.waiting == 4
        await stage.decide(ConnectRefused("no") if refused else None)
        assert str(await _next(socket))[:2] == ("44" if refused else "40")
        assert await _next(socket) == "43/second,1[1]"
        assert not client.pauses
        assert stage.seen[2:] == ([] if refused else list(range(20)))
        await socket.close()


async def test_they_count_for_the_message_rate() -> None:
    stage = Stage(messages_per_s_max=4)
    async with serving(stage.sio, native=True) as port:
        socket = await _open(port)
        for packet in ("40", *['42["echo",1]'] * 4):
            await socket.send(packet)
        with pytest.raises(ConnectionClosed) as caught:
            await _next(socket)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
        await stage.decide()


async def test_several_packets_of_one_polling_body() -> None:
    stage = Stage()
    async with serving(stage.sio, native=True) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling"
        url += "&sid=" + json.loads((await http.get(url)).text[1:])["sid"]
        body = "\x1e".join(("40", '421["echo",1]', f'451-2["echo",{PLACE}]', "bAQ==", "41", "40"))
        assert (await http.post(url, content=body)).text == "ok"
        await stage.decide()
        assert [what for what in stage.seen if what not in {"connect", "decided"}] == [1, b"\x01", LEFT]
        (answer,) = (await http.get(url)).text.split("\x1e")
        assert answer.startswith("40{")


async def test_the_handlers_of_a_dynamic_namespace_get_them(native: bool) -> None:
    stage = Stage(re.compile(r"/dyn-\d"))
    async with serving(stage.sio, native=native) as port:
        socket = await _open(port)
        for packet in ("40/dyn-1,", '42/dyn-1,1["echo",1]', "40/dyn-2,", '42/dyn-2,1["echo",2]', "41/dyn-2,"):
            await socket.send(packet)
        await until(lambda: stage.waiting == 1 and stage.sio.stats.sockets == 1)
        await stage.decide()
        assert str(await _next(socket)).startswith("40/dyn-1,{")
        assert await _next(socket) == "43/dyn-1,1[1]"
        assert 1 in stage.seen
        assert [what for what in stage.seen if what in {2, LEFT}] == [2, LEFT]
        await socket.close()


async def test_who_comes_back_gets_what_it_missed_before_the_answers(one: Place, valkey_url: str, unique: str) -> None:
    client = await Raw.join(one.port, {"rooms": ["r"]})
    await gone(one, client)
    for number in range(3):
        await one.sio.emit("n", number, room="r")
    heard: list[tuple[str, list[str]]] = []

    def prepare(sio: Server) -> None:
        @sio.event
        async def ask(sid: str, value: int) -> int:
            heard.append((sid, sorted(sio.rooms(sid))))
            await sio.emit("n", value, to=sid)
            return value

    async with place(valkey_url, unique, prepare=prepare) as there:
        await there.has_read(one)
        again = await Raw.open(there.port)
        await again.ask(client.back(None))
        await again.connection.send('427["ask",3]')
        assert await again.answer() == client.ids
        got = [await again.next() for _ in range(5)]
        events = [json.loads(text[2:])[1] for text in got if text.startswith("42")]
        assert events == [0, 1, 2, 3]
        assert "437[3]" in got[3:]
        sid = client.ids["sid"]
        assert heard == [(sid, sorted([sid, "r"]))]


async def test_session_that_has_moved_takes_them_for_its_next_namespace(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, 2, namespaces=("/second",)) as made:
        for number, sio in enumerate(made.servers):
            sio.on("connect", lambda sid: asyncio.sleep(0), namespace="/second")
            sio.on("said", lambda sid, what, at=number: (at, what), namespace="/second")
        wanderer = Wanderer(made.servers[0])
        await wanderer.join()
        await move(made, wanderer)
        wanderer.websocket.got.clear()
        wanderer.send("40/second,", '42/second,1["said","early"]')
        await until(lambda: len(wanderer.websocket.got) == 2)
        assert str(wanderer.websocket.got[0]).startswith("40/second,{")
        assert wanderer.websocket.got[1] == '43/second,1[1,"early"]'
