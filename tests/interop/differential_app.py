"""The application of ``node/differential.js`` on Flotta's server: what the differential test asks of both.

``/control`` answers, when everything that came before has been done, with what the handlers have seen since the last
time; ``/control?release`` lets in who waits at the gate.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs

from flotta.errors import ConnectRefused
from flotta.realtime import Server
from flotta.realtime.middleware import Next
from realtime_fixtures import plain

__all__ = ["Control", "flotta_app"]

TURNS: Final = 15
"""Turns of the event loop after which everything that had come in has been done."""
NAMESPACES: Final = ("/", "/second", "/guarded", "/gated")
DYNAMIC: Final = re.compile(r"/dyn-[a-z0-9]+")


class Control:
    """What handlers have seen, the gate, and the ASGI app that tells."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []
        self.names: dict[str, str] = {}
        self.gate = asyncio.Event()

    def see(self, sid: str, namespace: str, kind: str, *what: Any) -> None:
        """Write down what has happened to a client."""
        self.seen.append([self.names[sid], namespace, kind, plain(what)])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        found = scope["type"] == "http" and scope["path"] == "/control"
        body = await self._told(release=b"release" in scope["query_string"]) if found else b""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _told(self, *, release: bool) -> bytes:
        if release:
            self.gate.set()
            self.gate = asyncio.Event()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        seen, self.seen = self.seen, []
        return json.dumps(seen).encode()


def flotta_app(**options: Any) -> tuple[Server, Control]:
    """The server with its handlers, and the app that is to be served beside it."""
    sio, control = Server(**options), Control()
    for namespace in (*NAMESPACES, DYNAMIC):
        _register(sio, control, namespace)

    @sio.use(namespace="/guarded")
    def guard(_sid: str, _environ: Any, auth: Any) -> None:
        if not auth or auth.get("token") != "yes":
            raise ConnectRefused("not you", {"why": "token"})

    @sio.use(namespace="/gated")
    async def wait(*_: Any) -> None:
        await control.gate.wait()

    return sio, control


def _register(sio: Server, control: Control, spec: str | re.Pattern[str]) -> None:
    def on(event: str, handler: Callable[..., Any]) -> None:
        async def named(sid: str, *args: Any) -> Any:
            control.see(sid, str(spec), "event", event, *args)
            return await handler(str(spec), sid, *args)

        async def dynamic(namespace: str, sid: str, *args: Any) -> Any:
            control.see(sid, namespace, "event", event, *args)
            return await handler(namespace, sid, *args)

        sio.on(event, named if isinstance(spec, str) else dynamic, namespace=spec)

    acts = _Acts(sio)
    for event in _EVENTS:
        on(event, getattr(acts, event))

    def connect(namespace: str, sid: str, environ: dict[str, Any]) -> None:
        control.names[sid] = parse_qs(environ["QUERY_STRING"])["who"][0]
        control.see(sid, namespace, "connect")

    def disconnect(namespace: str, sid: str, reason: str) -> None:
        control.see(sid, namespace, "disconnect", str(reason))

    async def unknown(namespace: str, sid: str, event: str, _args: list[Any], go_on: Next) -> Any:
        if event not in _EVENTS:
            control.see(sid, namespace, "event", event)
        return await go_on()

    if isinstance(spec, str):
        sio.on("connect", lambda sid, environ: connect(spec, sid, environ), namespace=spec)
        sio.on("disconnect", lambda sid, reason: disconnect(spec, sid, reason), namespace=spec)
        sio.use_event(lambda sid, *args: unknown(spec, sid, *args), namespace=spec)
    else:
        sio.on("connect", connect, namespace=spec)
        sio.on("disconnect", disconnect, namespace=spec)
        sio.use_event(unknown, namespace=spec)


class _Acts:
    """What the events do, by their names: ``(namespace, sid, *args)``."""

    def __init__(self, sio: Server) -> None:
        self._sio = sio

    async def echo(self, _namespace: str, _sid: str, *args: Any) -> tuple[Any, ...]:
        return args

    async def back(self, namespace: str, sid: str, *args: Any) -> None:
        await self._sio.emit("back", args, to=sid, namespace=namespace)

    async def join(self, namespace: str, sid: str, room: str) -> tuple[()]:
        await self._sio.enter_room(sid, room, namespace=namespace)
        return ()

    async def leave(self, namespace: str, sid: str, room: str) -> tuple[()]:
        await self._sio.leave_room(sid, room, namespace=namespace)
        return ()

    async def say(self, namespace: str, sid: str, what: dict[str, Any]) -> tuple[()]:
        return await self._spread(namespace, what, sid)

    async def tell(self, namespace: str, _sid: str, what: dict[str, Any]) -> tuple[()]:
        return await self._spread(namespace, what)

    async def _spread(self, namespace: str, what: dict[str, Any], *spared: str) -> tuple[()]:
        rooms, spared = what.get("to") or None, (*spared, *what.get("except", ()))
        args = tuple(what.get("args", ()))
        await self._sio.emit("said", args, room=rooms, skip_sid=spared or None, namespace=namespace)
        return ()

    async def ask(self, namespace: str, sid: str, *args: Any) -> None:
        async def answered(*answer: Any) -> None:
            await self._sio.emit("answered", answer, to=sid, namespace=namespace)

        await self._sio.emit("question", args, to=sid, namespace=namespace, callback=answered)

    async def maybe(self, namespace: str, sid: str, *args: Any) -> None:
        await self._sio.emit("maybe", args, to=sid, namespace=namespace, volatile=True)

    async def kick(self, namespace: str, sid: str, *_: Any) -> None:
        await self._sio.disconnect(sid, namespace=namespace)

    async def hangup(self, namespace: str, sid: str, *_: Any) -> None:
        await self._sio.disconnect_sockets(room=sid, close=True, namespace=namespace)


_EVENTS: Final = ("echo", "back", "join", "leave", "say", "tell", "ask", "maybe", "kick", "hangup")
