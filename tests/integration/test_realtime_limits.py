"""Every limit, broken on every transport; origins; slow clients; what is logged and measured of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from flotta.realtime import Server
from flotta.realtime.journal import NAME, Journal
from flotta.realtime.limits import Addresses, network_of
from flotta.realtime.metrics import RealtimeCollector
from realtime_fixtures import native, serving, until

__all__ = ["native"]

WS = "/socket.io/?EIO=4&transport=websocket"
POLL = "/socket.io/?EIO=4&transport=polling"
TRANSPORTS = ["native", "asgi", "polling"]


@pytest.fixture
def log() -> io.StringIO:
    """What `logger` has written, one line of JSON each."""
    return io.StringIO()


@pytest.fixture
def logger(log: io.StringIO) -> Any:
    steps: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return structlog.wrap_logger(structlog.PrintLogger(log), processors=[structlog.stdlib.add_log_level, *steps])


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


_made: list[Guest] = []


@pytest.fixture(autouse=True)
async def _everybody_leaves() -> AsyncIterator[None]:
    yield
    for guest in _made:
        await guest.aclose()
    _made.clear()


class Guest:
    """A client that has joined, over WebSocket or by polling."""

    def __init__(self, port: int, transport: str) -> None:
        self._port = port
        self._polling = transport == "polling"
        self._http: httpx.AsyncClient | None = None
        self._url = ""
        self.socket: ClientConnection | None = None
        _made.append(self)

    async def open(self, headers: dict[str, str] | None = None, *, join: bool = True) -> int:
        """The status of the handshake: 200 or 101 if it worked."""
        if self._polling:
            self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", headers=headers)
            opened = await self._http.get(POLL)
            if opened.status_code != 200:
                return opened.status_code
            self._url = f"{POLL}&sid={json.loads(opened.text[1:])['sid']}"
        else:
            try:
                self.socket = await ws_connect(f"ws://127.0.0.1:{self._port}{WS}", additional_headers=headers)
            except InvalidStatus as refused:
                return refused.response.status_code
            await self.socket.recv()
        if join:
            await self.send("40")
            assert '0{"sid"' in await self.receive()
        return 200 if self._polling else 101

    async def send(self, *messages: str | bytes) -> None:
        if self.socket is None:
            assert self._http is not None
            body = "\x1e".join("b" + m.hex() if isinstance(m, bytes) else m for m in messages)
            await self._http.post(self._url, content=body)
            return
        for message in messages:
            await self.socket.send(message)

    async def receive(self) -> str:
        if self.socket is not None:
            return str(await self.socket.recv())
        assert self._http is not None
        return (await self._http.get(self._url, timeout=10)).text

    async def aclose(self) -> None:
        """Leave. Again: harmless, also where the server has gone."""
        http, self._http = self._http, None
        if self.socket is not None:
            await self.socket.close()
        if http is not None:
            with contextlib.suppress(httpx.TransportError):
                if self._url:
                    await http.post(self._url, content="1")
            await http.aclose()


@asynccontextmanager
async def guests(port: int, transport: str, count: int, **options: Any) -> AsyncIterator[list[Guest]]:
    async with AsyncExitStack() as stack:
        found = [Guest(port, transport) for _ in range(count)]
        for guest in found:
            stack.push_async_callback(guest.aclose)
            assert await guest.open(**options) in {101, 200}
        yield found


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- how many ---


async def test_one_more_than_the_server_takes_is_refused_with_503(
    transport: str, logger: Any, log: io.StringIO
) -> None:
    sio = Server(connections_max=2, logger=logger)
    async with serving(sio, native=transport == "native") as port:
        async with guests(port, transport, 2):
            assert [await Guest(port, transport).open() for _ in range(5)] == [503] * 5
            assert sio.stats.refusals == {"at_capacity": 5}
        await until(lambda: sio.stats.connections == 0)
        async with guests(port, transport, 1):
            pass
    told = [line for line in lines(log) if line["level"] == "warning" and "full" in line["event"]]
    assert [line["so_far"] for line in told] == [1, 2, 4]


async def test_one_more_from_an_address_than_allowed_is_refused_with_429(transport: str) -> None:
    sio = Server(connections_per_ip_max=2)
    async with serving(sio, native=transport == "native") as port:
        async with guests(port, transport, 2) as (first, _):
            assert await Guest(port, transport).open() == 429
            assert sio.stats.refusals == {"crowded": 1}
            await first.aclose()
            await until(lambda: sio.stats.connections == 1)
            again = Guest(port, transport)
            assert await again.open() in {101, 200}
            await again.aclose()
        await until(lambda: sio.stats.connections == 0)
        assert len(sio._core.addresses) == 0


async def test_addresses_are_those_that_a_trusted_proxy_tells_and_no_other(transport: str) -> None:
    sio = Server(connections_per_ip_max=1)
    app = {"native": transport == "native", "forwarded_allow_ips": "127.0.0.1"}
    async with serving(sio, **app) as port:
        for number in range(3):
            told = {"X-Forwarded-For": f"203.0.113.{number}"}
            guest = Guest(port, transport)
            assert await guest.open(told) in {101, 200}
            assert await Guest(port, transport).open(told) == 429
        one, same = {"X-Forwarded-For": "2001:db8:0:1::1"}, {"X-Forwarded-For": "2001:db8:0:1:ffff::2"}
        guest = Guest(port, transport)
        assert await guest.open(one) in {101, 200}
        assert await Guest(port, transport).open(same) == 429
    untrusting = Server(connections_per_ip_max=1)
    async with serving(untrusting, native=transport == "native", forwarded_allow_ips="10.0.0.1") as port:
        assert await Guest(port, transport).open({"X-Forwarded-For": "203.0.113.1"}) in {101, 200}
        assert await Guest(port, transport).open({"X-Forwarded-For": "203.0.113.2"}) == 429


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.1", "203.0.113.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("testclient", "testclient", True),
        ("testclient", "other", False),
    ],
)
def test_a_64_of_ipv6_is_one_address(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


def test_clients_are_counted_off_once_and_a_unix_socket_never_counts() -> None:
    addresses = Addresses(1)
    addresses.enter("a", "192.0.2.1")
    addresses.enter("a", "192.0.2.1")
    assert addresses.is_full("192.0.2.1")
    for _ in range(2):
        addresses.leave("a")
    assert (addresses.is_full("192.0.2.1"), len(addresses)) == (False, 0)
    addresses.enter("b", "")
    assert not addresses.is_full("")


# --- how much ---


async def _ends(sio: Server, transport: str, *messages: str | bytes) -> None:
    """The messages end that connection and no other."""
    async with serving(sio, native=transport == "native") as port, guests(port, transport, 2) as (bad, good):
        await bad.send(*messages)
        await until(lambda: sio.stats.connections == 1)
        await sio.emit("still there")
        assert "still there" in await good.receive()


async def test_too_many_messages_end_the_connection(transport: str) -> None:
    sio = Server(messages_per_s_max=20)
    await _ends(sio, transport, *['42["e"]'] * 40)
    assert sio.stats.ended["message rate exceeded"] == 1


@pytest.mark.parametrize(("announced", "ends"), [(3, True), (2, False)])
async def test_too_many_attachments_end_the_connection(transport: str, announced: int, ends: bool) -> None:
    sio = Server(attachments_max=2)
    got: list[int] = []
    sio.on("e", lambda sid, *data: got.append(len(data)))
    places = ",".join(f'{{"_placeholder":true,"num":{n}}}' for n in range(announced))
    packet = f'45{announced}-["e",{places}]'
    if ends:
        await _ends(sio, transport, packet)
        assert got == []
        return
    async with serving(sio, native=transport == "native") as port, guests(port, transport, 1) as (good,):
        parts: list[str | bytes] = ["bAAA=", "bAAE="] if transport == "polling" else [b"\0\0", b"\0\1"]
        await good.send(packet, *parts)
        await until(lambda: got == [2])


@pytest.mark.parametrize("filler", ["x" * 10_000, "ü" * 5_000])  # bytes count, not characters
async def test_too_large_a_message_ends_the_connection_and_the_log_says_why(
    transport: str, filler: str, logger: Any, log: io.StringIO
) -> None:
    sio = Server(payload_bytes_max=10_000, logger=logger)
    await _ends(sio, transport, f'42["e","{filler}"]')
    assert sio.stats.ended["parse error"] == 1
    (told,) = [line for line in lines(log) if "too large" in line["event"]]
    assert (told["payload_bytes_max"], told["cure"]) == (10_000, "send less at once, or the option payload_bytes_max")


async def test_rooms_of_a_socket_are_bounded_and_only_the_server_puts_it_into_one(transport: str) -> None:
    sio = Server(rooms_max=2)
    sids: list[str] = []
    sio.on("connect", sids.append)
    async with serving(sio, native=transport == "native") as port, guests(port, transport, 1) as (guest,):
        assert [await sio.enter_room(sids[0], room) for room in "abc"] == [True, True, False]
        assert sio.rooms(sids[0]) == sorted([sids[0], "a", "b"])
        # No packet of the protocol names a room: what a client says is an event for handlers, whatever it is called.
        for word in ("join", "enter_room", "room", "subscribe", "$join"):
            await guest.send(f'42["{word}","secret"]')
        await sio.emit("for the secret", room="secret")
        await sio.emit("end")
        received = await guest.receive()
        assert "end" in received
        assert "secret" not in received
        assert sio.rooms(sids[0]) == sorted([sids[0], "a", "b"])


async def test_who_sends_no_event_is_idle_and_told_to_stay_away(transport: str) -> None:
    sio = Server(idle_s=1.0, ping_interval_s=0.1)
    sio.on("e", lambda sid: None)
    now = asyncio.get_running_loop().time
    opened_s = now()
    async with serving(sio, native=transport == "native") as port, guests(port, transport, 2) as (idle, busy):
        while sio.stats.connections == 2:
            await busy.send('42["e"]', "3")
            await idle.send("3")  # its heart beats
            await asyncio.sleep(0.02)
        assert now() - opened_s >= 1.0
        assert sio.stats.ended == {"idle": 1}
        if idle.socket is not None:
            assert "41" in [message async for message in _rest(idle.socket)]
            assert idle.socket.close_code == 1008


async def _rest(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield await socket.recv()


# --- origins ---

HOST = "app.example.com"
ORIGINS = [
    ("https://evil.example.org", 403),
    ("null", 403),
    (f"http://{HOST}.evil.com", 403),
    (f"http://evil-{HOST}", 403),
    (f"http://{HOST}:8080", 403),
    (f"http://{HOST}@evil.com", 403),
    ("HTTP://" + HOST.upper(), 200),  # host names know no case
    (f"http://{HOST}", 200),
    ("https://listed.example.com", 200),
    ("https://listed.example.com:8443", 403),
    ("https://LISTED.example.com.", 403),
]


@pytest.mark.parametrize(("origin", "status"), ORIGINS)
async def test_origin_is_judged_at_the_handshake_and_with_every_request(
    transport: str, origin: str, status: int
) -> None:
    sio = Server(cors_origins=("https://listed.example.com",))
    async with serving(sio, native=transport == "native") as port:
        headers = {"Origin": origin, "Host": HOST}
        if transport == "polling":
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                opened = await http.get(POLL, headers=headers)
                assert opened.status_code == status
                ours = await http.get(POLL)  # a session that is there: each later request is judged too
                url = f"{POLL}&sid={json.loads(ours.text[1:])['sid']}"
                assert (await http.post(url, content="40", headers=headers)).status_code == status
                assert (await http.options(url, headers=headers)).status_code in {status, status + 4}
                answer = await http.get(url, headers=headers)
                assert answer.status_code == (status if status == 403 else 200)
                assert ("access-control-allow-origin" in answer.headers) is (status == 200)
                upgraded = await _upgrade(port, f"{url.replace('polling', 'websocket')}", origin)
                assert upgraded == (101 if status == 200 else 403)
        else:
            assert await _upgrade(port, WS, origin) == (101 if status == 200 else 403)
        assert ("forbidden" in sio.stats.refusals) is (status == 403)


async def _upgrade(port: int, url: str, origin: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET {url} HTTP/1.1\r\nHost: {HOST}\r\nOrigin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    status = int((await reader.readline()).split()[1])
    writer.transport.abort()
    return status


async def test_page_without_tls_does_not_connect_to_a_server_with_it(transport: str) -> None:
    sio = Server()
    async with serving(sio, native=transport == "native", forwarded_allow_ips="127.0.0.1") as port:
        told = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.1"}
        assert await Guest(port, transport).open({**told, "Origin": f"http://127.0.0.1:{port}"}) == 403
        assert await Guest(port, transport).open({**told, "Origin": f"https://127.0.0.1:{port}"}) in {101, 200}


# --- slow clients ---


async def _silent(port: int, transport: str) -> asyncio.StreamWriter:
    """A client that joins, asks for what there is, and reads nothing of it."""
    small = sockets.socket()
    small.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=small)
    if transport != "polling":
        writer.write(
            f"GET {WS} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        await reader.readuntil(b'"maxPayload"')
        writer.write(b"\x81\x82\x00\x00\x00\x0040")
        await reader.readuntil(b'40{"sid"')
    else:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            url = f"{POLL}&sid={json.loads((await http.get(POLL)).text[1:])['sid']}"
            await http.post(url, content="40")
            await http.get(url)
        writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return writer


async def test_clients_that_do_not_read_hold_a_bounded_number_of_bytes_and_are_cut(transport: str) -> None:
    limit, clients = 200_000, 20
    sio = Server(send_bytes_max=limit, volatile_bytes_max=50_000)
    async with serving(sio, native=transport == "native") as port, guests(port, "native", 1) as (good,):
        writers = await asyncio.gather(*(_silent(port, transport) for _ in range(clients)))
        await until(lambda: sio.stats.sockets == clients + 1)
        most = sent = 0
        while sio.stats.connections > 1:
            await sio.emit("big", "x" * 20_000)
            sent += 1
            assert "big" in await good.receive()
            most = max(most, sio.unsent_bytes)
            assert sent < 1_000
        assert limit / 2 * clients < most <= limit * clients
        assert sio.stats.ended == {"slow client": clients}
        for writer in writers:
            writer.transport.abort()


# --- logs and metrics ---


async def test_no_secret_of_a_client_is_in_any_log(
    transport: str, logger: Any, log: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, NAME)
    canary = "canary-7c1f"
    sio = Server(connections_per_ip_max=2, logger=logger, presence=True)

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.set_user(sid, "ada")

    @sio.event
    async def fails(sid: str, secret: str) -> None:
        raise RuntimeError("of the application")

    headers = {"Cookie": f"session={canary}", "Authorization": f"Bearer {canary}"}
    async with serving(sio, native=transport == "native") as port:
        sid = ""
        for _ in range(2):
            guest = Guest(port, transport)
            await guest.open(headers, join=False)
            await guest.send("40" + json.dumps({"token": canary}))
            sid = json.loads((await guest.receive())[2:])["sid"]
            await guest.send(f'42["fails","{canary}"]')
        await until(lambda: sio.stats.handlers_failed == 2)
        assert await Guest(port, transport).open(headers) == 429
        await guest.send(f'42["{canary}')  # junk
        await until(lambda: sio.stats.connections == 1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            for query in (f"&sid={canary}", f"&token={canary}"):
                assert (await http.get(POLL + query, headers={"Origin": "http://evil", **headers})).status_code >= 400
        await sio.revoke("ada")
    text = log.getvalue() + caplog.text
    events = [line["event"] for line in lines(log)]
    assert {"connected", "disconnected", "handler failed"} <= set(events)
    assert canary not in text
    assert all(len(line["session"]) == 8 for line in lines(log) if "session" in line)
    assert sid


async def test_single_connections_are_logged_only_where_debug_is_asked_for(logger: Any, log: io.StringIO) -> None:
    sio = Server(logger=logger)
    async with serving(sio, native=True) as port, guests(port, "native", 1):
        pass
    assert [line for line in lines(log) if line["level"] == "debug"] == []


def test_flood_of_warnings_is_sampled(logger: Any, log: io.StringIO) -> None:
    journal = Journal(logger)
    for _ in range(1_000):
        journal.sampled("a flood", why="because")
    assert [line["so_far"] for line in lines(log)] == [2**n for n in range(10)]


async def test_metrics_tell_connections_refusals_and_their_reasons(native: bool) -> None:
    sio = Server(connections_max=2, presence=True)

    @sio.event
    async def connect(sid: str) -> None:
        await sio.set_user(sid, "ada")

    registry = CollectorRegistry()
    registry.register(RealtimeCollector(sio))
    async with serving(sio, native=native) as port:
        async with guests(port, "native", 2):
            assert await Guest(port, "native").open() == 503
            text = generate_latest(registry).decode()
            for line in (
                "websocket_connections 2.0",
                'flotta_realtime_connections{path="/socket.io"} 2.0',
                'flotta_realtime_connections_max{path="/socket.io"} 2.0',
                'flotta_realtime_refusals_total{path="/socket.io",reason="at_capacity"} 1.0',
                'flotta_realtime_users{path="/socket.io"} 1.0',
                'flotta_realtime_presence_entries{path="/socket.io"} 2.0',
                'flotta_realtime_unsent_bytes{path="/socket.io"} 0.0',
                'flotta_realtime_adapter_connected{path="/socket.io"} 1.0',
            ):
                assert line in text.splitlines(), line
        await until(lambda: sio.stats.connections == 0)
        assert 'flotta_realtime_ended_total{path="/socket.io",reason="transport close"} 2.0' in (
            generate_latest(registry).decode().splitlines()
        )
