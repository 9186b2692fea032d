"""A move of a session taken apart, for tests: instances that hear nothing before they are told to, and a client whose
polling and WebSocket are in the test's hands."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from flotta.realtime import Server
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio.handshake import Facts
from flotta.realtime.transports.polling import PollingTransport
from flotta.redis import Redis
from realtime_fixtures import until

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/socket.io/",
    "query_string": b"",
    "headers": [(b"host", b"x"), (b"cookie", b"who=ada")],
    "client": ("192.0.2.7", 4711),
}


class Gate:
    """Holds what one Redis client's subscriptions hear, all of them in one line, until it is let through."""

    def __init__(self, redis: Redis) -> None:
        self.held: deque[tuple[Any, bytes, bytes]] = deque()
        self.is_open = True
        hub = redis.hub
        subscribe, listen = hub.subscribe, hub.listen

        async def gated_subscribe(channel: Any, listener: Any, **kind: Any) -> Any:
            return await subscribe(channel, _Gated(self, listener), **kind)

        def gated_listen(channel: Any, listener: Any, **kind: Any) -> Any:
            return listen(channel, _Gated(self, listener), **kind)

        hub.subscribe, hub.listen = gated_subscribe, gated_listen  # type: ignore[method-assign]

    def let(self, count: int = 1) -> int:
        """Let the next ones through; how many there were."""
        done = 0
        while self.held and done < count:
            listener, channel, payload = self.held.popleft()
            listener.on_message(channel, payload)
            done += 1
        return done

    def open(self) -> None:
        """Hold nothing any more."""
        self.is_open = True
        self.let(len(self.held))


class _Gated:
    def __init__(self, gate: Gate, listener: Any) -> None:
        self._gate = gate
        self._listener = listener
        self.on_lost: Callable[[], None] = listener.on_lost
        self.on_restored: Callable[[], None] = listener.on_restored

    def on_message(self, channel: bytes, payload: bytes) -> None:
        if self._gate.is_open and not self._gate.held:
            self._listener.on_message(channel, payload)
        else:
            self._gate.held.append((self._listener, channel, payload))


class WebSocket:
    """A WebSocket's transport in the test's hands."""

    name = "websocket"

    def __init__(self) -> None:
        self.got: list[str | bytes] = []
        self.closed: tuple[int, str] | None = None
        self.is_read = True

    def write(self, packet: Any) -> None:
        if self.closed is None:
            self.got += [packet.text.decode(), *packet.attachments]

    def write_volatile(self, packet: Any) -> bool:
        self.write(packet)
        return True

    def write_control(self, text: str) -> None:
        self.got.append(text)

    def release_polls(self, *, on: bool) -> None: ...
    def hand_over(self, successor: Any) -> None: ...

    def pause(self) -> None:
        self.is_read = False

    def resume(self) -> None:
        self.is_read = True

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)


class Wanderer:
    """A client that polls at one instance and upgrades at another."""

    def __init__(self, home: Server) -> None:
        self.home = home
        self.polling = PollingTransport(1_000_000)
        facts = Facts("GET", upgrade=False, version="4", transport="polling", sid="", origin=None, host="x")
        self.client, _ = home._core.open(self.polling, Request(scope=SCOPE), facts)
        self.polling.client = self.client
        self.sid = self.client.sid
        self.websocket = WebSocket()
        self.near: Any = None
        self.polled: list[str] = []
        self._unsent: list[str] = []

    async def join(self, *rooms: str) -> None:
        """Into the default namespace, and these rooms."""
        self.client.receive("40")
        await until(lambda: self.client.sockets and not self.client.sockets["/"].connecting)
        for room in rooms:
            await self.home.enter_room(self.socket_sid, room)
        self.polled += (await self.polling.take()).split("\x1e")

    @property
    def socket_sid(self) -> str:
        """Of the default namespace."""
        return next(iter(self.client.sockets.values())).sid

    def upgrade_at(self, other: Server) -> None:
        """Open a WebSocket at another instance, and send the probe."""
        assert other._core.elsewhere is not None
        scope = {**SCOPE, "type": "websocket", "query_string": f"EIO=4&transport=websocket&sid={self.sid}".encode()}
        request = Request(scope=scope)
        facts = request.facts()
        assert other._core.admit(facts) is None
        self.near = other._core.elsewhere.accept(self.websocket, request, facts)
        self.near.receive("2probe")

    def switch(self) -> None:
        """The probe was answered: go over."""
        assert self.websocket.got == ["3probe"]
        self.websocket.got.clear()
        self.near.receive("5")

    def send(self, *packets: str) -> None:
        """Send over the WebSocket, or keep it until it is read again, as TCP would."""
        self._unsent += packets
        self.flush()

    def flush(self) -> None:
        """Send what was kept."""
        while self._unsent and self.websocket.is_read and not self.near.over:
            self.near.receive(self._unsent.pop(0))

    @property
    def events(self) -> list[list[Any]]:
        """Every event that the WebSocket got, without acknowledgements' ids."""
        texts = [text for text in self.websocket.got if isinstance(text, str) and text.startswith("42")]
        return [json.loads(text[text.index("[") :]) for text in texts]


async def turn(redis: Redis) -> None:
    """Let everything that is on its way to Redis, and from it, arrive (at the gates)."""
    for _ in range(2):
        await redis.ping()
        await asyncio.sleep(0)


class World(NamedTuple):
    servers: list[Server]
    gates: list[Gate]
    clients: list[Redis]
    heard: list[Any]
    """What handlers were called with, of all servers."""

    async def turn(self) -> None:
        for client in self.clients:
            if not client.link.closed:
                await turn(client)

    def relay(self, number: int) -> Any:
        return self.servers[number].stats.relay


@asynccontextmanager
async def world(
    url: str, prefix: str, count: int = 3, *, far_url: str | None = None, **options: Any
) -> AsyncIterator[World]:
    """``far_url``: the second instance's way to the same Redis."""
    async with AsyncExitStack() as stack:
        made = World([], [], [], [])
        for number in range(count):
            redis = await Redis.from_url(far_url or url if number == 1 else url).connect()
            stack.push_async_callback(redis.aclose)
            gate = Gate(redis)
            sio = Server(redis, channel_prefix=prefix, instance=f"ins{number}", **options)
            register(sio, number, made.heard)
            await sio.start()
            stack.push_async_callback(sio.aclose)
            made.servers.append(sio)
            made.gates.append(gate)
            made.clients.append(redis)
        yield made
        for gate in made.gates:
            gate.open()


def register(sio: Server, number: int, heard: list[Any]) -> None:
    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await sio.save_session(sid, {"by": number})

    @sio.event
    async def said(sid: str, what: Any) -> Any:
        heard.append(("said", number, what))
        return what

    @sio.event
    def disconnect(sid: str, reason: str) -> None:
        heard.append(("disconnect", number, reason))


async def move(made: World, wanderer: Wanderer, to: int = 1) -> None:
    """Upgrade there, gates open, until the session is there."""
    wanderer.upgrade_at(made.servers[to])
    await until(lambda: wanderer.websocket.got == ["3probe"])
    wanderer.switch()
    await until(lambda: made.relay(to).moved_here == 1 and made.relay(to).tunnels == 0)
    await until(lambda: wanderer.websocket.is_read)
