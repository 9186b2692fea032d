"""Which WebSockets the native transport serves: those that the web server's app leads to the server, and no other; and
what a start that fails is to the web server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus

from flotta.realtime import EngineServer, Server
from flotta.realtime.transports.native import NativeTransport
from flotta.server.gate import Gate
from free_ports import free_port
from realtime_fixtures import serving

QUERY = "EIO=4&transport=websocket"


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    """What an app does that lets nobody in."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})


class Guard:
    """Middleware around an app: it lets in who brings the password."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        open_ = scope["type"] != "websocket" or (b"x-password", b"yes") in scope["headers"]
        await (self.app if open_ else _refuse)(scope, receive, send)


class Below:
    """Puts an app below a path, and hands its lifespan on to it, as some dispatchers do."""

    def __init__(self, path: str, app: Any) -> None:
        self.path, self.app = path, app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            if not scope["path"].startswith(self.path + "/"):
                await _refuse(scope, receive, send)
                return
            scope = {**scope, "root_path": self.path}
        await self.app(scope, receive, send)


async def _passing(_scope: Any, receive: Any, send: Any) -> None:
    """An app whose lifespan passes on whatever happens in its answer."""
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def _without(_scope: Any, _receive: Any, _send: Any) -> None:
    """An app that knows no lifespan, as Django's."""
    raise ValueError("no lifespan here")


@asynccontextmanager
async def _open(sio: Any, port: int, path: str = "/socket.io", **headers: str) -> AsyncIterator[bool]:
    """A connection; whether it is served natively."""
    async with ws_connect(f"ws://127.0.0.1:{port}{path}/?{QUERY}", additional_headers=headers) as socket:
        sid = json.loads((await socket.recv())[1:])["sid"]
        engine = sio._core if isinstance(sio, Server) else sio._engine
        yield isinstance(engine.clients[sid].transport, NativeTransport)


async def _status(port: int, path: str = "/socket.io") -> int:
    with pytest.raises(InvalidStatus) as caught:
        await ws_connect(f"ws://127.0.0.1:{port}{path}/?{QUERY}")
    return int(caught.value.response.status_code)


def _starlette(sio: Server, path: str, app: Any) -> Any:
    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with sio:
            yield

    site = Starlette(lifespan=lifespan)
    site.mount(path, app)
    return site


@pytest.mark.parametrize("place", [_starlette, lambda _sio, path, app: Below(path, app)])
async def test_server_below_a_path_is_reached_there_only_and_past_its_guards(place: Any) -> None:
    sio = Server()
    async with serving(sio, native=True, whole=place(sio, "/a", Guard(sio.app())), drain=False) as port:
        assert await _status(port) == 403  # from the first connection on
        assert await _status(port, "/a/socket.io") == 403
        async with _open(sio, port, "/a/socket.io", **{"x-password": "yes"}) as native:
            assert not native
        assert await _status(port) == 403
        assert sio.stats.opened == 1


@pytest.mark.parametrize("root_path", ["", "/api"])  # the latter is what a proxy has taken off
@pytest.mark.parametrize(
    ("at", "reached"),
    [
        ("/socket.io", "/socket.io"),
        ("/", "/socket.io"),
        ("/a", "/a/socket.io"),
        ("/a/socket.io", "/a/socket.io"),
    ],
)
async def test_server_is_reached_below_its_mount_and_at_a_mount_that_ends_in_its_own_path(
    at: str, reached: str, root_path: str
) -> None:
    sio = Server()
    app = _starlette(sio, at, sio.app())
    async with serving(sio, native=True, whole=app, drain=False, root_path=root_path) as port:
        async with _open(sio, port, reached) as native:
            assert not native
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            assert (await http.get(f"{reached}/?EIO=4&transport=polling")).text.startswith("0{")
            assert (await http.get("/socket.io/other?EIO=4&transport=polling")).status_code == 404


async def test_middleware_around_a_server_sees_its_connections() -> None:
    sio = Server()
    async with serving(sio, native=True, whole=Guard(sio.app())) as port:
        assert await _status(port) == 403
        async with _open(sio, port, **{"x-password": "yes"}) as native:
            assert not native


async def test_servers_one_inside_the_other_are_served_natively_behind_the_gate_of_a_worker() -> None:
    sio, engine = Server(path="/one"), EngineServer(path="/two")
    nobody: Any = None
    app = sio.app(engine.app(Starlette()))
    gate = Gate(app, nobody, health_path=None, metrics_path=None, metrics_token=None, log=None)
    async with serving(sio, native=True, whole=gate, proxy_headers=True) as port:
        for server, path in ((sio, "/one"), (engine, "/two")):
            async with _open(server, port, path) as native:
                assert native
        assert await _status(port, "/three") == 403


async def test_of_two_servers_at_one_path_the_outer_one_answers_natively_or_not() -> None:
    outer, inner = Server(native=False), Server()
    async with serving(inner, native=True, whole=outer.app(inner.app())) as port, _open(outer, port) as native:
        assert not native
        assert inner.stats.connections == 0


async def test_two_web_servers_of_one_process_each_serve_their_own_natively() -> None:
    one, two = Server(), Server()
    async with serving(one, native=True) as at_one, serving(two, native=True) as at_two:
        async with _open(one, at_one) as first, _open(two, at_two) as second:
            assert (first, second) == (True, True)
            assert (one.stats.connections, two.stats.connections) == (1, 1)
        async with serving(Server(path="/other"), native=True) as elsewhere:
            assert await _status(elsewhere) == 403


@pytest.mark.parametrize("other", [None, Starlette(), _passing, _without])
async def test_web_server_does_not_begin_where_the_start_fails_and_says_why(
    other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sio = Server(f"redis://127.0.0.1:{free_port()}")
    web = uvicorn.Config(sio.app(other), lifespan="auto", log_config=None)
    web.load()
    lifespan = web.lifespan_class(web)
    await asyncio.wait_for(lifespan.startup(), 10)
    assert lifespan.should_exit  # what the web server goes by
    assert "the realtime server cannot start: no connection to 127.0.0.1:" in caplog.text
    assert "unsupported" not in caplog.text


async def _silent(scope: Any, _receive: Any, _send: Any) -> None:
    """An app that passes over what it does not know."""
    assert scope["type"] in {"http", "lifespan"}


async def _deaf(_scope: Any, _receive: Any, send: Any) -> None:
    """An app that takes everything for a request."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def _hasty(scope: Any, receive: Any, send: Any) -> None:
    """And one that reads it first."""
    await receive()
    await _deaf(scope, receive, send)


async def _brief(_scope: Any, receive: Any, send: Any) -> None:
    """An app that does something at the start only."""
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize("other", [_silent, _deaf, _hasty, _brief, _without])
@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_server_of_an_app_without_a_lifespan_is_started_and_ended(other: Any, mode: Any) -> None:
    sio = Server()
    web = uvicorn.Config(sio.app(other), lifespan=mode, log_config=None)
    web.load()
    lifespan = web.lifespan_class(web)
    await asyncio.wait_for(lifespan.startup(), 10)
    assert not lifespan.should_exit
    assert sio.running
    await asyncio.wait_for(lifespan.shutdown(), 10)
    assert sio.stats.state == "closed"


async def test_app_that_fails_at_its_startup_has_a_lifespan_that_fails() -> None:
    async def other(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        raise OSError("no disk")

    sio = Server()
    web = uvicorn.Config(sio.app(other), lifespan="on", log_config=None)
    web.load()
    lifespan = web.lifespan_class(web)
    await asyncio.wait_for(lifespan.startup(), 10)
    assert lifespan.should_exit
    assert not sio.started
