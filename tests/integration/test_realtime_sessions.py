"""The sessions of clients by their ids: of who is here, of who has gone, and of who was never here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from flotta.errors import RealtimeError, UnknownClient
from flotta.realtime import Namespace, Server
from realtime_fixtures import serving, until
from realtime_moves import Wanderer, move, world

Use = Callable[[Server, str], Awaitable[Any]]


async def _join(port: int, namespace: str = "/") -> tuple[ClientConnection, str]:
    """A connection that has joined the namespace, and its session id there."""
    socket = await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket")
    await socket.recv()
    await socket.send("40" if namespace == "/" else f"40{namespace},")
    answer = str(await socket.recv())
    return socket, json.loads(answer[answer.index("{") :])["sid"]


async def _with_session(sio: Server, sid: str) -> None:
    async with sio.session(sid) as session:
        session["name"] = "ada"


USES: dict[str, Use] = {
    "save": lambda sio, sid: sio.save_session(sid, {"name": "ada"}),
    "get": lambda sio, sid: sio.get_session(sid),
    "with": _with_session,
    "user": lambda sio, sid: sio.set_user(sid, "ada"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_client_that_was_never_here_is_an_error_that_names_it(use: Use) -> None:
    sio = Server()
    async with serving(sio, native=True):
        for nobody in ("ada", "XyZ1" + "a" * 16, "", None):
            with pytest.raises(UnknownClient, match="is no client of this instance") as raised:
                await use(sio, nobody)  # type: ignore[arg-type]
            assert isinstance(raised.value, RealtimeError)
            assert (raised.value.sid, raised.value.namespace) == (nobody, "/")


WIDER_USES: dict[str, Use] = {
    "enter": lambda sio, sid: sio.enter_room(sid, "r"),
    "leave": lambda sio, sid: sio.leave_room(sid, "r"),
    "disconnect": lambda sio, sid: sio.disconnect(sid),
}
"""Of clients on any instance: whoever is not here may be there."""


@pytest.mark.parametrize("use", WIDER_USES.values(), ids=WIDER_USES)
async def test_client_that_may_be_elsewhere_is_no_error(use: Use) -> None:
    sio = Server()
    async with serving(sio, native=True):
        assert not await use(sio, "XyZ1" + "a" * 16)


@pytest.mark.parametrize("use", [*USES.values(), *WIDER_USES.values()], ids=[*USES, *WIDER_USES])
async def test_client_of_another_namespace_is_an_error_that_says_which(use: Use) -> None:
    sio = Server(namespaces=("/chat",))
    async with serving(sio, native=True) as port:
        socket, sid = await _join(port, "/chat")
        with pytest.raises(UnknownClient, match="it is in '/chat': say namespace="):
            await use(sio, sid)
        assert await sio.save_session(sid, {"name": "ada"}, namespace="/chat") is True
        assert await sio.get_session(sid, namespace="/chat") == {"name": "ada"}
        await socket.close()


async def test_client_that_has_gone_is_quiet_and_says_that_nothing_was_saved() -> None:
    sio = Server()
    kept: list[bool] = []

    class Chat(Namespace):
        async def on_disconnect(self, sid: str) -> None:
            kept.append(await self.save_session(sid, {"last": True}))

    sio.register_namespace(Chat("/"))
    async with serving(sio, native=True) as port:
        socket, sid = await _join(port)
        assert await sio.save_session(sid, {"name": "ada"}) is True
        async with sio.session(sid) as session:
            session["gone"] = True
            await socket.close()
            await until(lambda: kept and not sio.stats.handlers_running)
        assert kept == [True]
        assert await sio.save_session(sid, {"name": "ada"}) is False
        assert await sio.get_session(sid) == {}
        await sio.set_user(sid, "ada")
        assert sio.user_of(sid) is None


@pytest.mark.parametrize("strangers_max", [1, 0])
async def test_client_that_has_come_from_another_instance_and_gone_is_quiet_while_it_is_remembered(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch, strangers_max: int
) -> None:
    monkeypatch.setattr("flotta.realtime.core.STRANGERS_MAX", strangers_max)
    async with world(valkey_url, unique, 2) as made:
        home, there = made.servers
        wanderer = Wanderer(home)
        await wanderer.join()
        sid = wanderer.socket_sid
        with pytest.raises(UnknownClient):
            await there.get_session(sid)
        await move(made, wanderer)
        assert await home.save_session(sid, {"lost": True}) is False
        assert await there.save_session(sid, {"kept": True}) is True
        wanderer.near.lost("transport close")
        await until(lambda: not there.stats.handlers_running)
        if strangers_max:
            assert await there.get_session(sid) == {}
            assert await there.save_session(sid, {}) is False
        else:
            with pytest.raises(UnknownClient):
                await there.save_session(sid, {})
