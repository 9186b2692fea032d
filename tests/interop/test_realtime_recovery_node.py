"""The official client is recovered by Flotta, by Node, and across both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flotta.realtime import Server
from realtime_fixtures import NodePeer, node, node_modules, serving, start_node, until
from realtime_recovery_stage import Switchboard

__all__ = ["node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

BLOB = bytes(range(256))


@dataclass
class Fleet:
    """Two Flotta instances and a Node server behind a switchboard; ``ports`` by name."""

    peer: NodePeer
    one: Server
    two: Server
    ports: dict[str, int]
    board: Switchboard

    async def connect(self, at: str, **options: Any) -> str:
        """Connect the client ``c`` to the server ``at``."""
        self.board.target = self.ports[at]
        return await self.peer.connect("c", self.board.port, **options)

    async def leave_with(self, *missed: Callable[[], Awaitable[Any]]) -> None:
        """Cut the client off and do ``missed`` while it is away: nobody answers at its port until `come_back`."""
        gone = len(self.peer.seen("c", "disconnect"))
        await self.board.move(1)  # nobody listens there
        await self.peer.wait("c", "disconnect", gone + 1)
        for step in missed:
            await step()

    async def come_back(self, at: str) -> list[Any]:
        """Let it come back at the server ``at``: what its connect event says."""
        before = len(self.peer.seen("c", "connect"))
        self.board.target = self.ports[at]
        return (await self.peer.wait("c", "connect", before + 1))[-1]

    def got(self) -> list[Any]:
        """Name and first argument of every event."""
        return [args[:2] for args in self.peer.seen("c", "event") if args[0] not in {"settle", "end"}]

    async def end(self) -> None:
        """Return when the client has all that was sent before."""
        count = len(self.peer.events("c", "end"))
        await self.one.emit("end")
        await self.peer.wait_event("c", "end", count + 1)


def _server(url: str, prefix: str, **options: Any) -> Server:
    sio = Server(
        url,
        adapter="streams",
        stream_name=prefix,
        channel_prefix=prefix,
        recovery_key_prefix=f"{prefix}:session:",
        **options,
    )

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], _auth: Any) -> None:
        if not environ["flotta.recovered"]:
            await sio.save_session(sid, {"name": "ada"})

    @sio.event
    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, room)

    @sio.event
    async def whoami(sid: str) -> list[Any]:
        session = await sio.get_session(sid)
        return [sid, sorted(room for room in sio.rooms(sid) if room != sid), session, sio.recovered(sid)]

    return sio


@asynccontextmanager
async def _fleet(url: str, prefix: str, peer: NodePeer) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        one, two = _server(url, prefix), _server(url, prefix)
        await one.start()
        await two.start()
        ports = {
            "one": await stack.enter_async_context(serving(one, native=True)),
            "two": await stack.enter_async_context(serving(two, native=False)),
            "node": await peer.do(
                "serve",
                redis=url,
                adapter="streams",
                options={"streamName": prefix, "channelPrefix": prefix, "sessionKeyPrefix": f"{prefix}:session:"},
                server={"connectionStateRecovery": {"maxDisconnectionDuration": 60_000}},
            ),
        }
        board = await stack.enter_async_context(Switchboard())
        settled = await peer.connect("settling", ports["node"])
        assert settled
        for _ in range(200):  # Node's reader does not say when it reads
            await one.emit("settle", to=settled)
            if peer.events("settling", "settle"):
                break
            await asyncio.sleep(0.02)
        yield Fleet(peer, one, two, ports, board)
        await peer.do("close", name="c")
        await peer.do("close", name="settling")


@pytest.fixture
async def fleet(node: NodePeer, valkey_url: str, unique: str) -> AsyncIterator[Fleet]:
    async with _fleet(valkey_url, unique, node) as made:
        yield made


@pytest.mark.parametrize("back", ["one", "two", "node"])
@pytest.mark.parametrize("first", ["one", "two", "node"])
async def test_the_client_comes_back_with_its_id_rooms_and_all_that_it_missed(
    fleet: Fleet, first: str, back: str
) -> None:
    peer, one = fleet.peer, fleet.one
    sid = await fleet.connect(first, auth={"data": {"name": "ada"}})
    await peer.do("ask", name="c", args=["join", "r"])
    await one.emit("live", 1, room="r")
    await peer.wait_event("c", "live")
    await fleet.leave_with(
        lambda: one.emit("all", 2),
        lambda: one.emit("room", (3, BLOB), room="r"),
        lambda: peer.do("broadcast", rooms=["r"], args=["node", 4]),
        lambda: one.emit("direct", 5, to=sid),
        lambda: one.emit("other", 6, room="elsewhere"),
        lambda: one.emit("not you", 7, skip_sid=sid),
        lambda: one.emit("not your room", 8, skip_sid="r"),
        lambda: fleet.two.emit("last", "text", room=["r", sid]),
    )
    again, _, recovered = await fleet.come_back(back)
    assert (again, recovered) == (sid, True)
    await one.emit("after", 9, room="r")
    await peer.wait_event("c", "after")
    got = fleet.got()
    assert sorted(got, key=str) == sorted(
        [["live", 1], ["all", 2], ["room", 3], ["node", 4], ["direct", 5], ["last", "text"], ["after", 9]], key=str
    )
    from_one = [event for event in got if event[0] in {"live", "all", "room", "direct", "after"}]
    assert from_one == [["live", 1], ["all", 2], ["room", 3], ["direct", 5], ["after", 9]]
    assert peer.events("c", "room")[0][1] == BLOB
    if back != "node":
        (who,) = await peer.do("ask", name="c", args=["whoami"])
        assert who == [sid, ["r"], {"name": "ada"}, True]
    else:
        (found,) = [socket for socket in await peer.do("fetchSockets", room=sid) if socket["id"] == sid]
        assert found["data"] == {"name": "ada"}


async def test_a_client_wanders_over_all_servers_and_misses_nothing(fleet: Fleet) -> None:
    sid = await fleet.connect("one")
    await fleet.peer.do("ask", name="c", args=["join", "r"])
    number = 0
    await fleet.one.emit("n", number, room="r")
    await fleet.peer.wait_event("c", "n")
    for at in ["two", "node", "one", "one", "node", "node", "two"]:
        number += 1
        kept = number
        await fleet.leave_with(lambda kept=kept: fleet.two.emit("n", kept, room="r"))
        assert (await fleet.come_back(at))[::2] == [sid, True]
        number += 1
        await fleet.one.emit("n", number, room="r")
        await fleet.peer.wait_event("c", "n", number + 1)
    assert fleet.got() == [["n", each] for each in range(number + 1)]


async def test_a_client_that_got_nothing_yet_is_recovered_by_flotta(fleet: Fleet) -> None:
    sid = await fleet.connect("one")
    assert (await fleet.peer.do("recovery", name="c"))["offset"] is None
    await fleet.leave_with(lambda: fleet.one.emit("n", 1))
    assert (await fleet.come_back("two"))[::2] == [sid, True]
    await fleet.end()
    assert fleet.got() == [["n", 1]]


async def test_text_at_the_end_of_an_event_does_not_cost_the_recovery(fleet: Fleet) -> None:
    sid = await fleet.connect("one")
    await fleet.one.emit("n", 0)
    await fleet.one.emit("text", "volatile", volatile=True)
    await fleet.one.emit("bare", volatile=True)
    await fleet.one.emit("text", "local", local=True)
    await fleet.peer.wait_event("c", "text", 2)
    await fleet.leave_with(lambda: fleet.one.emit("n", 1), lambda: fleet.one.emit("gone", 2, volatile=True))
    assert (await fleet.come_back("two"))[::2] == [sid, True]
    await fleet.end()
    assert [event for event in fleet.got() if event[0] in {"n", "gone"}] == [["n", 0], ["n", 1]]


@pytest.mark.parametrize("how", ["client", "server"])
async def test_who_was_disconnected_on_purpose_begins_anew(fleet: Fleet, how: str) -> None:
    sid = await fleet.connect("one")
    await fleet.one.emit("n", 0)
    await fleet.peer.wait_event("c", "n")
    if how == "server":
        await fleet.one.disconnect(sid)
    else:
        await fleet.peer.do("disconnect", name="c")
    await fleet.peer.wait("c", "disconnect")
    await until(lambda: not fleet.one.is_connected(sid))
    await fleet.peer.do("reconnect", name="c")
    (again, _, recovered) = (await fleet.peer.wait("c", "connect", 2))[-1]
    assert again != sid
    assert not recovered


async def test_a_client_that_polls_gets_all_that_it_missed(fleet: Fleet) -> None:
    sid = await fleet.connect("one", transports=["polling"])
    await fleet.one.emit("n", 0)
    await fleet.peer.wait_event("c", "n")

    async def publish() -> None:
        for number in range(1, 300):
            await fleet.two.emit("n", number)

    await fleet.leave_with(publish)
    assert (await fleet.come_back("two"))[::2] == [sid, True]
    await fleet.end()
    assert fleet.got() == [["n", number] for number in range(300)]


PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "realtime-recovery.md").read_text()


async def test_the_program_of_the_page_recovers_its_client(node: NodePeer, valkey_url: str, unique: str) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    url = f'"{valkey_url}", stream_name="{unique}", channel_prefix="{unique}"'
    exec(program.replace('"redis://127.0.0.1:6379"', url), names)
    async with serving(names["sio"], native=True, whole=names["app"]) as port:
        sid = await node.connect("c", port, auth={"name": "ada"})
        await names["sio"].emit("position", ("vessel", 1, 2), room="harbour")
        (position,) = await node.wait_event("c", "position")
        assert position[:3] == ["vessel", 1, 2]
        assert isinstance(position[3], str)
        await node.do("cut", name="c")
        assert (await node.wait("c", "connect", 2))[-1][::2] == [sid, True]
        assert await node.do("ask", name="c", args=["who"]) == ["ada"]
        assert names["sio"].rooms(sid) == sorted(["harbour", sid])
        await node.do("close", name="c")
