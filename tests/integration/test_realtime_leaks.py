"""Clients that come and go leave nothing in any part of a server, with everything on that keeps state per client."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from flotta.realtime import Server
from flotta.realtime.client import Client, Socket
from flotta.realtime.people import Person
from flotta.realtime.recovery.kept import Kept
from flotta.realtime.transports.native import NativeTransport
from flotta.redis import Redis
from realtime_fixtures import serving, until

STORM, ROUNDS = 40, 5


def _parts(owner: Any) -> Iterator[tuple[str, Any]]:
    """What an object of ours holds, by name."""
    for kind in type(owner).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(owner, name):
                yield name, getattr(owner, name)
    yield from getattr(owner, "__dict__", {}).items()


def _sizes(root: Any) -> dict[str, int]:
    """The length of every container that can be reached from ``root`` through objects of ours, by the way there."""
    sizes: dict[str, int] = {}
    seen, ahead = {id(root)}, deque([("sio", root)])
    while ahead:
        path, found = ahead.popleft()
        if isinstance(found, (dict, list, set, deque)):
            sizes[path] = len(found)
            inner = found.values() if isinstance(found, Mapping) else found
            parts: Any = ((f"{path}[]", part) for part in inner)
        else:
            if isinstance(found, Sized):
                sizes[path] = len(found)
            parts = ((f"{path}.{name}", part) for name, part in _parts(found))
        for name, part in parts:
            ours = type(part).__module__.startswith("flotta.realtime")
            if (ours or isinstance(part, (dict, list, set, deque))) and id(part) not in seen:
                seen.add(id(part))
                ahead.append((name, part))
    return sizes


def _alive() -> Counter[str]:
    gc.collect()
    kinds = {Client, Socket, NativeTransport, Person, Kept, asyncio.Task}
    return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if kind in kinds)


def _make(redis: Redis, prefix: str, adapter: str) -> Server:
    sio = Server(
        redis,
        adapter=adapter,  # type: ignore[arg-type]
        channel_prefix=prefix,
        stream_name=prefix,
        recovery_key_prefix=f"{prefix}:session:",
        recovery_s=60.0 if adapter == "streams" else None,
        presence=True,
        idle_s=60.0,
        messages_per_s_max=1_000,
        connections_per_user_max=1_000,
        connections_per_ip_max=1_000,
    )

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.set_user(sid, f"user-{auth['number']}", expires_at=4e9)
        await sio.enter_room(sid, f"room-{auth['number'] % 7}")
        await sio.save_session(sid, {"number": auth["number"]})

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        assert (await sio.get_session(sid))["number"] >= 0

    @sio.event(namespace=re.compile("/dynamic-.*"))
    async def hello(namespace: str, sid: str) -> str:
        return namespace

    @sio.event
    async def ask(sid: str) -> str:
        await sio.emit("asked", to=sid, callback=print)  # nobody answers
        return "asked"

    return sio


async def _read(socket: ClientConnection, start: str) -> None:
    async with asyncio.timeout(10):
        while not str(await socket.recv()).startswith(start):
            pass


async def _come_and_go(port: int, number: int) -> None:
    async with ws_connect(f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket") as socket:
        await socket.send("40" + json.dumps({"number": number}))
        await _read(socket, '40{"sid"')
        await socket.send(f"40/dynamic-{number % 3},")
        await _read(socket, "40/dynamic-")
        await socket.send('421["ask"]')
        await _read(socket, "431")
        if number % 3 == 0:
            await socket.send("41")
        elif number % 3 == 1:
            socket.transport.abort()


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_storms_leave_nothing_that_grows_in_any_part(redis: Redis, unique: str, adapter: str) -> None:
    sio = _make(redis, unique, adapter)
    async with serving(sio, native=True) as port:

        async def storm(first: int) -> None:
            await asyncio.gather(*(_come_and_go(port, first + number) for number in range(STORM)))
            await until(lambda: not sio.stats.connections and not sio.stats.handlers_running)

        await storm(0)
        before, alive = _sizes(sio), _alive()
        for number in range(1, ROUNDS + 1):
            await storm(number * STORM)
        assert sio.stats.opened == (ROUNDS + 1) * STORM
        await until(lambda: not _alive() - alive)

        def grown() -> dict[str, tuple[int, int]]:
            return {
                path: (before.get(path, 0), size)
                for path, size in _sizes(sio).items()
                if size > before.get(path, 0) + STORM // 2
            }

        until_s = asyncio.get_running_loop().time() + 10
        while (left := grown()) and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.1)  # what is known for a moment longer
        assert not left
        assert sio.stats.handlers_failed == 0
