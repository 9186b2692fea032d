"""Filters (`may_see`) are asked in the moment in which an event is written to its client, however long it was held."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flotta.errors import RealtimeError
from flotta.realtime import Server
from realtime_fixtures import serving, until
from realtime_people import come, make
from realtime_recovery_places import connections
from realtime_recovery_stage import Raw

__all__ = ["connections"]

MANY = 1_500
"""Events of 10 kB: more than the kernel and the server's own buffer take for a client that does not read."""


class Gallery:
    """A server whose events only those may see who are on its list; its ``connect`` handler waits for `doors`."""

    def __init__(self, url: str, prefix: str, **options: Any) -> None:
        names = {"stream_name": prefix, "channel_prefix": prefix, "recovery_key_prefix": f"{prefix}:session:"}
        self.sio = sio = Server(url, **{"adapter": "streams", **names, **options})
        self.allowed = {"ada"}
        self.doors = asyncio.Event()
        self.doors.set()
        self.entering: list[str] = []

        @sio.event
        async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, Any]) -> None:
            self.entering.append(sid)
            await self.doors.wait()
            await sio.save_session(sid, {"name": auth["name"]})

        @sio.may_see("listed")
        def listed(_sid: str, session: dict[str, Any], *_data: Any) -> bool:
            return session.get("name") in self.allowed

    async def recovering(self, port: int) -> Raw:
        """A client that comes back, and waits at the door."""
        first = await Raw.join(port, {"name": "ada"})
        first.cut()
        await until(lambda: not self.sio.is_connected(first.ids["sid"]))
        await self.sio.emit("n", 0, may_see="listed")
        self.doors.clear()
        again = await Raw.open(port)
        await again.ask({**first.back(None), "name": "ada"})
        await until(lambda: len(self.entering) == 2)
        return again


async def test_what_is_revoked_while_the_handler_runs_reaches_nobody(valkey_url: str, unique: str) -> None:
    gallery = Gallery(valkey_url, unique)
    await gallery.sio.start()
    async with serving(gallery.sio, native=True) as port:
        again = await gallery.recovering(port)
        await gallery.sio.emit("n", 1, may_see="listed")
        await gallery.sio.emit("end")
        await gallery.sio.enter_room(gallery.entering[0], "any")  # what was sent before has been delivered
        gallery.allowed.clear()
        gallery.doors.set()
        await again.answer()
        assert await again.events_until("end") == []


@pytest.mark.parametrize("adapter", ["streams", "classic"])
async def test_what_comes_while_the_handler_runs_is_judged_by_who_it_says(
    valkey_url: str, unique: str, adapter: str
) -> None:
    gallery = Gallery(valkey_url, unique, adapter=adapter)
    await gallery.sio.start()
    async with serving(gallery.sio, native=True) as port:
        gallery.doors.clear()
        raws = [await Raw.open(port) for _ in range(2)]
        for raw, name in zip(raws, ("ada", "eve"), strict=True):
            await raw.ask({"name": name})
        await until(lambda: len(gallery.entering) == 2)
        await gallery.sio.emit("n", 1, may_see="listed")
        await gallery.sio.emit("end")
        if adapter == "streams":
            await gallery.sio.enter_room(gallery.entering[0], "any")  # what was sent before has been delivered
        gallery.doors.set()
        got = []
        for raw in raws:
            await raw.answer()
            got.append([event[1] for event in await raw.events_until("end")])
        assert got == [[1], []]


async def test_a_replay_ends_where_the_event_is_revoked(valkey_url: str, unique: str) -> None:
    gallery = Gallery(valkey_url, unique, send_bytes_max=200_000)
    await gallery.sio.start()
    async with serving(gallery.sio, native=True) as port:
        first = await Raw.join(port, {"name": "ada"})
        first.cut()
        await until(lambda: not gallery.sio.is_connected(first.ids["sid"]))
        witness = await Raw.join(port, {"name": "eve"})
        for number in range(MANY):
            await gallery.sio.emit("n", (number, "x" * 10_000), may_see="listed")
        await gallery.sio.emit("sent")
        assert await witness.events_until("sent") == []
        again = await Raw.open(port)
        await again.ask({**first.back(None), "name": "ada"})
        await again.answer()
        await until(lambda: gallery.sio.unsent_bytes > 0)  # it reads no further: the replay waits
        gallery.allowed.clear()
        await gallery.sio.emit("end")
        got = [event[1] for event in await again.events_until("end") if event[0] == "n"]
        assert got == list(range(len(got)))
        assert 0 < len(got) < MANY


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"to": "sid", "may_see": "nobody"}, "no filter is asked"),
        ({"room": "r"}, "'r' is a room"),
        ({"to": ["sid", "r"]}, "one session id"),
        ({"user": "ada"}, "a user may have several clients"),
        ({}, "one session id"),
    ],
)
async def test_event_with_a_callback_goes_to_one_client_unfiltered_or_to_nobody(
    target: dict[str, Any], why: str
) -> None:
    sio = make(None, "")
    sio.may_see("nobody")(lambda *_: False)
    async with serving(sio, native=True) as port:
        visitor = await come(port, user="ada")
        await sio.enter_room(visitor.sid, "r")
        named = {"sid": visitor.sid, "r": "r"}
        if isinstance(to := target.get("to"), list):
            target = {"to": [named[each] for each in to]}
        elif to is not None:
            target = {**target, "to": visitor.sid}
        with pytest.raises(RealtimeError, match=why):
            await sio.emit("asked", callback=print, **target)
        await sio.emit("next")
        assert await visitor.next() == '42["next"]'
        await visitor.socket.close()
