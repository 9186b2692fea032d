"""The official client with ``socket.io-msgpack-parser`` against a server with ``parser="msgpack"``, both ways."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from flotta.realtime import Server
from realtime_fixtures import NodePeer, native, node, node_modules, serving, start_node, until

__all__ = ["native", "node", "node_modules", "start_node"]

pytestmark = pytest.mark.node

DATA: list[Any] = [
    None,
    True,
    0,
    -1,
    127,
    -128,
    65_535,
    -32_769,
    2**32,
    -(2**40),
    2**53 - 1,
    1.5,
    -0.1,
    "",
    "é€😀\x1e",
    "x" * 70_000,
    b"",
    b"\x00\xff",
    b"y" * 70_000,
    [],
    {},
    {"deep": [{"er": [b"\x01", {"": None}]}], "_placeholder": True, "num": 0},
    list(range(100)),
]


def _server() -> Server:
    sio = Server(parser="msgpack")
    sio.on("echo", lambda sid, *data: data)

    @sio.event
    async def back(sid: str, *data: Any) -> None:
        await sio.emit("back", data, to=sid)

    @sio.on("echo", namespace="/other")
    def echo_other(sid: str, *data: Any) -> Any:
        return data

    return sio


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
async def test_every_value_goes_to_the_server_and_comes_back(
    node: NodePeer, native: bool, transports: list[str]
) -> None:
    async with serving(_server(), native=native) as port:
        await node.connect("a", port, parser="msgpack", transports=transports)
        if len(transports) == 2:
            await node.wait("a", "upgrade")
        assert await node.do("ask", name="a", args=["echo", *DATA]) == DATA
        await node.do("emit", name="a", args=["back", *DATA])
        assert await node.wait_event("a", "back") == [DATA]


async def test_server_asks_the_client_and_namespaces_are_apart(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sid = await node.connect("a", port, parser="msgpack")
        assert await sio.call("question", ("x", b"\x02"), to=sid, timeout_s=5.0) == ("x", b"\x02")
        await node.connect("b", port, parser="msgpack", namespace="/other")
        assert await node.do("ask", name="b", args=["echo", 1]) == [1]
        await node.do("connect", name="c", url=f"http://127.0.0.1:{port}/unknown", options={"parser": "msgpack"})
        assert await node.wait("c", "connect_error") == [["Invalid namespace", None]]
        await sio.disconnect(sid)
        assert await node.wait("a", "disconnect") == [["io server disconnect"]]


async def test_broadcast_reaches_rooms_on_every_transport(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        sids = [
            await node.connect("a", port, parser="msgpack"),
            await node.connect("b", port, parser="msgpack", transports=["polling"]),
            await node.connect("c", port, parser="msgpack"),
        ]
        for sid in sids[:2]:
            await sio.enter_room(sid, "room")
        await sio.emit("news", {"n": [1, b"\x00"]}, room="room")
        for name in ("a", "b"):
            assert await node.wait_event(name, "news") == [[{"n": [1, b"\x00"]}]]
        await sio.emit("end")
        await node.wait_event("c", "end")
        assert node.events("c", "news") == []


async def test_a_date_comes_as_a_datetime_and_goes_as_text(node: NodePeer) -> None:
    sio = _server()
    seen: list[Any] = []
    sio.on("date", lambda sid, *data: seen.extend(data))
    async with serving(sio, native=True) as port:
        await node.connect("a", port, parser="msgpack")
        await node.do("emit", name="a", args=["date", {"$date": 1_700_000_000_123}])
        await until(lambda: seen)
        assert seen == [datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)]
        await sio.emit("date", seen[0])
        assert await node.wait_event("a", "date") == [["2023-11-14T22:13:20.123Z"]]


async def test_a_client_of_the_other_parser_is_sent_away(node: NodePeer, native: bool) -> None:
    sio = _server()
    async with serving(sio, native=native) as port:
        await node.do(
            "connect", name="a", url=f"http://127.0.0.1:{port}", options={"reconnection": False, "timeout": 2000}
        )
        await until(lambda: sio.stats.ended.get("parse error") == 1)
