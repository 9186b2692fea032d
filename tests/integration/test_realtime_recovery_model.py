"""Recovery against a model that knows nothing of how it works: a list per client of all that was ever for it.

Three servers, a few clients, and random steps: events to all, to rooms, to clients, with filters; rooms entered and
left; connections cut, or overtaken by the client's next one; readers that stand still; while others go on. At the end
every client must have its list: in order, once, and nothing else. ``FLOTTA_RECOVERY_MODEL`` is how many runs there are.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import websockets

from flotta.realtime import Server
from flotta.realtime.adapters.streams import StreamsAdapter
from realtime_fixtures import serving, until

RUNS = int(os.environ.get("FLOTTA_RECOVERY_MODEL", "3"))
STEPS = 120
ROOMS = ("a", "b", "c")


class Person:
    """A client as strict as the official one, and what the model says of it."""

    def __init__(self) -> None:
        self.due: list[int] = []
        """All that was ever for it."""
        self.got: list[int] = []
        self.offsets: list[tuple[int, ...]] = []
        self.rooms: set[str] = set()
        self.odd = False
        self.at: Server
        self.sid = self.pid = ""
        self.connects = 0
        self._offset: str | None = None
        self._connection: websockets.ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self.coming: asyncio.Task[None] | None = None

    @property
    def is_in(self) -> bool:
        return self._reading is not None and not self._reading.done() and (self.coming is None or self.coming.done())

    async def come(self, at: Server, port: int, *, overtaking: bool) -> None:
        """Connect; an old connection that is overtaken still stands until the new one is in."""
        old = self._connection
        await self._stop_reading()
        if old is not None and not overtaking:
            old.transport.abort()
        url = f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket"
        self._connection = connection = await websockets.connect(url, compression=None, ping_interval=None)
        auth = {"odd": self.odd, "pid": self.pid, "offset": self._offset}
        auth = {name: value for name, value in auth.items() if value not in {None, ""}}
        await connection.recv()
        await connection.send("40" + json.dumps(auth))
        while (text := str(await connection.recv()))[:2] != "40":
            if text == "2":
                await connection.send("3")
        ids = json.loads(text[2:])
        assert self.pid in {"", ids["pid"]}, f"after {self.connects} connects it was not recovered"
        self.sid, self.pid, self.at = ids["sid"], ids["pid"], at
        self.connects += 1
        self._reading = asyncio.create_task(self._read(connection))
        if old is not None:
            old.transport.abort()

    async def _read(self, connection: websockets.ClientConnection) -> None:
        async for text in connection:
            if text == "2":
                await connection.send("3")
            elif text[:2] == "42":
                args = json.loads(text[2:])
                self._take(args)

    def _take(self, args: list[Any]) -> None:
        if args[0] == "n":
            self.got.append(args[1])
        if isinstance(args[-1], str):
            self._offset = args[-1]
            self.offsets.append(tuple(map(int, args[-1].split("-"))))

    async def _stop_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def go(self) -> None:
        """The connection breaks."""
        await self._stop_reading()
        if self._connection is not None:
            self._connection.transport.abort()


class World:
    """The servers, the clients, and what is done to them."""

    def __init__(self, servers: list[tuple[Server, int]], chance: random.Random) -> None:
        self.servers = servers
        self.people = [Person() for _ in range(6)]
        self.number = 0
        self._chance = chance
        self._frozen: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        for number, person in enumerate(self.people):
            person.odd = bool(number % 2)
            await person.come(*self._chance.choice(self.servers), overtaking=False)
            person.rooms = {person.sid}

    def _adapters(self) -> list[StreamsAdapter]:
        found = [sio._core.adapter for sio, _ in self.servers]
        return [adapter for adapter in found if isinstance(adapter, StreamsAdapter)]

    async def still(self) -> None:
        """Return when every server has delivered everything."""
        await asyncio.gather(*self._frozen)
        newest = max(adapter.position for adapter in self._adapters())
        for adapter in self._adapters():
            await adapter.reached(newest)

    async def emit(self) -> None:
        sio, _ = self._chance.choice(self.servers)
        for _ in range(self._chance.randint(1, 8)):
            targets = self._chance.choice([[], ["a"], ["b"], ["a", "c"], [self._chance.choice(self.people).sid]])
            skipped = self._chance.choice([[], [], ["b"], [self._chance.choice(self.people).sid]])
            only_odd, volatile = self._chance.random() < 0.2, self._chance.random() < 0.1
            self.number += 1
            await sio.emit(
                "volatile" if volatile else "n",
                self.number,
                room=targets or None,
                skip_sid=skipped or None,
                may_see="odd" if only_odd else None,
                volatile=volatile,
            )
            for person in () if volatile else self.people:
                meant = not targets or person.rooms.intersection(targets)
                if meant and not person.rooms.intersection(skipped) and (person.odd or not only_odd):
                    person.due.append(self.number)
        assert sio._core.adapter is not None
        await sio._core.adapter.settled()  # so the next one of another server comes after it

    async def change_rooms(self) -> None:
        person = self._chance.choice(self.people)
        await self.still()
        if not person.is_in:
            return
        room = self._chance.choice(ROOMS)
        if room in person.rooms:
            await person.at.leave_room(person.sid, room)
            person.rooms.remove(room)
        elif await person.at.enter_room(person.sid, room):
            person.rooms.add(room)

    async def cut(self) -> None:
        person = self._chance.choice(self.people)
        if person.is_in:
            await person.go()

    async def come_back(self) -> None:
        person = self._chance.choice(self.people)
        if person.coming is None or person.coming.done():
            if person.coming is not None:
                await person.coming
            overtaking = self._chance.random() < 0.4
            work = person.come(*self._chance.choice(self.servers), overtaking=overtaking)
            person.coming = asyncio.create_task(work)

    async def freeze(self) -> None:
        """A server does not read for a moment."""
        if not self._frozen:
            task = asyncio.create_task(self._freeze(self._chance.choice(self._adapters())._reader))
            self._frozen.add(task)
            task.add_done_callback(self._frozen.discard)

    async def _freeze(self, reader: Any) -> None:
        reader._task.cancel()
        await asyncio.wait({reader._task})
        await asyncio.sleep(self._chance.uniform(0.01, 0.1))
        reader._task = asyncio.create_task(reader._run())

    async def run(self) -> None:
        steps = [
            self.emit,
            self.emit,
            self.emit,
            self.change_rooms,
            self.cut,
            self.come_back,
            self.come_back,
            self.freeze,
        ]
        for _ in range(STEPS):
            await self._chance.choice(steps)()
            await asyncio.sleep(self._chance.choice([0, 0, 0.001, 0.02]))
        for person in self.people:
            if person.coming is not None:
                await person.coming
            if not person.is_in:
                await person.come(*self._chance.choice(self.servers), overtaking=False)

    async def judge(self) -> None:
        with suppress(TimeoutError):
            await until(lambda: all(len(person.got) >= len(person.due) for person in self.people), 5)
        await self.still()
        await asyncio.sleep(0.05)  # what should not come would come now
        for person in self.people:
            missing = sorted(set(person.due) - set(person.got))
            more = sorted(set(person.got) - set(person.due))
            assert person.got == person.due, f"missing {missing}, not for it {more}, of {len(person.due)}"
            assert person.offsets == sorted(set(person.offsets))


@asynccontextmanager
async def servers(url: str, prefix: str) -> AsyncIterator[list[tuple[Server, int]]]:
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(3):
            sio = Server(
                url,
                adapter="streams",
                stream_name=prefix,
                channel_prefix=prefix,
                recovery_key_prefix=f"{prefix}:session:",
                stream_read_count=7,
                ping_interval_s=0.05,
                ping_timeout_s=5,
            )

            async def connect(sid: str, environ: dict[str, Any], auth: Any, sio: Server = sio) -> None:
                if not environ["flotta.recovered"]:
                    await sio.save_session(sid, {"odd": auth["odd"]})

            sio.on("connect", connect)
            sio.may_see("odd")(lambda sid, session, *args: session["odd"])
            await sio.start()
            found.append((sio, await stack.enter_async_context(serving(sio, native=True))))
        yield found


@pytest.mark.parametrize("seed", range(RUNS))
async def test_everybody_ends_with_all_that_was_for_it(valkey_url: str, unique: str, seed: int) -> None:
    async with servers(valkey_url, unique) as found:
        world = World(found, random.Random(seed))
        try:
            await world.begin()
            await world.run()
            await world.judge()
        finally:
            for person in world.people:
                if person.coming is not None:
                    person.coming.cancel()
                await person.go()
