"""The stage of the recovery proof: instances that are killed, clients that speak the true protocol, and the checker.

The clients here are as strict as the official one and lighter: each does what ``socket.io-client`` does with its
private id and its offset, on a plain WebSocket. A few official ones run beside them in Node.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import websockets

from flotta.realtime import Server

PROGRAM = Path(__file__).parent / "realtime_recovery_instance.py"


class Instance:
    """One place in the fleet: a process, and the next one after it was killed."""

    def __init__(self, listening: socket.socket, redis_url: str, stream: str, options: dict[str, Any]) -> None:
        self._listening = listening
        self._arguments = (str(PROGRAM), str(listening.fileno()), redis_url, stream, json.dumps(options))
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Return when it serves."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            pass_fds=[self._listening.fileno()],
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        await asyncio.wait_for(self.process.stdout.readuntil(b"ready\n"), 30)

    async def kill(self) -> None:
        """As the kernel does it."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def replace(self) -> None:
        """Kill it, and return when its successor serves."""
        await self.kill()
        await self.start()


class Client:
    """One client that comes back until it is told to stop, and writes down every event."""

    def __init__(self, port: int, room: str, *, number: int) -> None:
        self.number = number
        self.room = room
        self.got: dict[str, list[int]] = defaultdict(list)
        self.offsets: list[str] = []
        self.sid: str | None = None
        self.connects = self.recovered = self.fresh = self.cuts = 0
        self.connected = asyncio.Event()
        self._url = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
        self._pid: str | None = None
        self._offset: str | None = None
        self._socket: websockets.ClientConnection | None = None
        self._task = asyncio.create_task(self._run(), name=f"client {number}")

    async def _run(self) -> None:
        while True:
            with suppress(OSError, websockets.WebSocketException, TimeoutError):
                await self._live()
            self.connected.clear()
            await asyncio.sleep(random.uniform(0.02, 0.3))

    async def _live(self) -> None:
        async with websockets.connect(
            self._url, compression=None, max_size=None, ping_interval=None, open_timeout=20, close_timeout=0.1
        ) as connection:
            self._socket = connection
            async for message in connection:
                assert isinstance(message, str)
                if message[0] == "0":
                    await connection.send("40" + json.dumps(self._auth()))
                elif message[0] == "2":
                    await connection.send("3")
                elif message[:2] == "40":
                    self._joined(json.loads(message[2:]))
                elif message[:2] == "42":
                    self._take(json.loads(message[2:]))

    def _auth(self) -> dict[str, Any]:
        auth: dict[str, Any] = {"room": self.room}
        if self._pid is None:
            return auth
        return {"pid": self._pid, **({} if self._offset is None else {"offset": self._offset}), **auth}

    def _joined(self, ids: dict[str, str]) -> None:
        if self._pid is not None:
            self.recovered += self._pid == ids["pid"]
            self.fresh += self._pid != ids["pid"]
        self._pid, self.sid = ids["pid"], ids["sid"]
        self.connects += 1
        self.connected.set()

    def _take(self, args: list[Any]) -> None:
        self.got[args[0]].append(args[1])
        if isinstance(args[-1], str):  # the official client's rule
            self._offset = args[-1]
            self.offsets.append(args[-1])

    def cut(self) -> None:
        """The connection breaks without a word (RST)."""
        if self._socket is not None and (raw := self._socket.transport.get_extra_info("socket")) is not None:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.transport.abort()
            self.cuts += 1

    async def send(self, *args: Any) -> None:
        """Send an event."""
        assert self._socket is not None
        await self._socket.send("42" + json.dumps(args))

    async def aclose(self) -> None:
        """Stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Publisher:
    """Numbers events: to all, to each room, to single clients."""

    sio: Server
    clients: list[Client]
    rooms: list[str]
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rate_per_s: float = 20.0
    running: asyncio.Event = field(default_factory=asyncio.Event)

    def name_of(self, client: Client) -> str:
        """The event that only this client gets."""
        return f"only{client.number}"

    async def run(self) -> None:
        """Until cancelled; a cleared `running` makes it rest."""
        for number in self._forever():
            await self.running.wait()
            await self._emit("all")
            room = self.rooms[number % len(self.rooms)]
            await self._emit(room, room=room)
            client = self.clients[number % len(self.clients)]
            if client.sid is not None:
                await self._emit(self.name_of(client), to=client.sid)
            await asyncio.sleep(1 / self.rate_per_s)

    @staticmethod
    def _forever() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    async def _emit(self, event: str, **target: Any) -> None:
        number = self.sent[event]
        self.sent[event] += 1
        await self.sio.emit(event, number, **target)

    def faults(self, got: dict[str, list[int]], own: str, room: str) -> list[str]:
        """What one client has not got, or not in order, or not once."""
        found = []
        for event in ("all", room, own):
            wanted, had = list(range(self.sent[event])), got.get(event, [])
            if had != wanted:
                missing, doubled = set(wanted) - set(had), len(had) - len(set(had))
                found.append(
                    f"{event}: {len(missing)} missing {sorted(missing)[:5]}, {doubled} twice, order {had[-5:]}"
                )
        found += [f"{event}: not for it" for event in got if event not in {"all", room, own}]
        return found

    def is_whole(self, client: Client) -> bool:
        """The client has the last of everything."""
        own = self.name_of(client)
        return all(len(client.got.get(name, ())) >= self.sent[name] for name in ("all", client.room, own))

    def verdict(self) -> dict[int, list[str]]:
        """The faults by client; empty is what must be."""
        found = {}
        for client in self.clients:
            faults = self.faults(client.got, self.name_of(client), client.room)
            if client.fresh:
                faults.append(f"{client.fresh} of {client.connects} connections were not recovered")
            ordered = [tuple(map(int, offset.split("-"))) for offset in client.offsets]
            if ordered != sorted(set(ordered)):
                faults.append("offsets out of order")
            if faults:
                found[client.number] = faults
        return found


class Raw:
    """One connection whose every step the test decides."""

    opened: ClassVar[list[Raw]] = []
    """All of this test; it closes them at its end."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.opened.append(self)
        self.connection = connection
        self.ids: dict[str, Any] = {}

    @classmethod
    async def open(cls, port: int) -> Raw:
        """Open the connection; no namespace is joined."""
        url = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
        raw = cls(await websockets.connect(url, compression=None, ping_interval=None, max_size=None))
        assert (await raw.next())[0] == "0"
        return raw

    @classmethod
    async def join(cls, port: int, auth: Any = None) -> Raw:
        """Open it and join; ``ids`` holds the session's."""
        raw = await cls.open(port)
        await raw.ask(auth)
        raw.ids = await raw.answer()
        return raw

    async def ask(self, auth: Any = None) -> None:
        """Ask to join."""
        await self.connection.send("40" + ("" if auth is None else json.dumps(auth)))

    async def answer(self) -> dict[str, Any]:
        """What the server answers to that."""
        text = await self.next()
        assert text[:2] in {"40", "44"}, text
        found: dict[str, Any] = json.loads(text[2:])
        return found

    async def next(self) -> str:
        """The next message that is no ping."""
        while True:
            text = await asyncio.wait_for(self.connection.recv(), 10)
            assert isinstance(text, str)
            if text != "2":
                return text
            await self.connection.send("3")

    async def event(self) -> list[Any]:
        """The next event."""
        text = await self.next()
        assert text[:2] == "42", text
        found: list[Any] = json.loads(text[2:])
        return found

    async def events_until(self, name: str) -> list[list[Any]]:
        """Every event up to the one of this name, which is left out."""
        found = []
        while (event := await self.event())[0] != name:
            found.append(event)
        return found

    def back(self, offset: str | None) -> dict[str, Any]:
        """The auth of a client that comes back."""
        return {"pid": self.ids["pid"], **({} if offset is None else {"offset": offset})}

    def cut(self) -> None:
        """The connection breaks."""
        self.connection.transport.abort()


class Switchboard:
    """A port behind which another server answers each time: what a balancer does, in the test's hand."""

    def __init__(self) -> None:
        self.target = 0
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where clients connect."""
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(back)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink), name="switchboard")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)

    def cut(self) -> None:
        """Break every connection."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.transport.abort()

    async def move(self, target: int) -> None:
        """Break every connection; who comes back gets ``target``."""
        self.target = target
        self.cut()
