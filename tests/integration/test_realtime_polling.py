"""Engine.IO over HTTP long-polling, request by request: the rules that the official client keeps and others may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from flotta.realtime import Server
from flotta.realtime.engine.sessions import SENT_AWAY_S
from realtime_fixtures import native, serving, until

__all__ = ["native"]


class Polling:
    """A client that polls by hand."""

    def __init__(self, http: httpx.AsyncClient, port: int) -> None:
        self.http = http
        self.url = f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling"

    async def open(self) -> dict[str, Any]:
        answer = await self.http.get(self.url)
        assert answer.status_code == 200
        facts = json.loads(answer.text[1:])
        self.url += f"&sid={facts['sid']}"
        return dict(facts)

    async def get(self) -> httpx.Response:
        return await self.http.get(self.url)

    async def post(self, body: str | bytes) -> httpx.Response:
        return await self.http.post(self.url, content=body)

    async def get_after(self, body: str) -> httpx.Response:
        await self.post(body)
        return await self.get()

    async def join(self) -> None:
        await self.open()
        assert (await self.post("40")).text == "ok"
        assert (await self.get()).text.startswith("40{")


async def test_packets_travel_in_one_body_with_binary_as_base64() -> None:
    sio = Server()
    sio.on("echo", lambda sid, *data: data)
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        assert (await client.open())["upgrades"] == ["websocket"]
        await client.post("40")
        await client.get()
        binary = '451-2["echo",{"_placeholder":true,"num":0}]'
        assert (await client.post(f'421["echo",1]\x1e{binary}\x1eb//8=')).text == "ok"
        answer = '461-2[{"_placeholder":true,"num":0}]'
        assert (await client.get()).text == f"431[1]\x1e{answer}\x1eb//8="


def waiting(sio: Server) -> bool:
    """Whether the server has a GET to which it has nothing to say yet."""
    return any(client.transport.getting for client in sio._core.clients.values())


async def test_second_get_or_cancelled_get_ends_the_session() -> None:
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        first = asyncio.create_task(client.get())
        await until(lambda: waiting(sio))
        assert (await client.get()).status_code == 400
        assert (await first).text == "1"
        assert (await client.get()).json()["code"] == 1
        other = Polling(http, port)
        await other.join()
        hanging = asyncio.create_task(other.get())
        await until(lambda: waiting(sio))
        hanging.cancel()
        await until(lambda: sio.stats.connections == 0)
        assert sio.stats.ended == {"transport error": 2}


@pytest.mark.parametrize(
    ("body", "status"),
    [("", 400), ("x", 400), (b"\xff\xfe", 400), ("b!!!", 400), ("4" + "x" * 3_000, 413), ("42[]", 200)],
)
async def test_bad_body_ends_that_session_only(body: str | bytes, status: int) -> None:
    sio = Server(payload_bytes_max=2_000)
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        good, bad = Polling(http, port), Polling(http, port)
        await good.join()
        await bad.join()
        assert (await bad.post(body)).status_code == status
        await until(lambda: sio.stats.connections == 1)
        waiting = asyncio.create_task(good.get())
        await sio.emit("still", "here")
        assert (await waiting).text == '42["still","here"]'


async def test_body_that_ends_too_early_is_a_lost_connection_and_not_a_large_message() -> None:
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        with capture_logs() as lines:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {client.url} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100\r\n\r\n"
            writer.write(head.encode() + b"42[")
            await until(lambda: any(each.transport.posting for each in sio._core.clients.values()))
            writer.close()
            await until(lambda: sio.stats.connections == 0)
        assert sio.stats.ended == {"transport error": 1}
        assert [line for line in lines if line["log_level"] != "info"] == []


async def test_what_is_taken_for_a_get_whose_client_has_just_left_ends_the_session() -> None:
    # Else the event would be missed by a client that goes on with another GET.
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        leaves, answers = asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            answers.append(message)

        url = httpx.URL(client.url)
        scope = {"type": "http", "method": "GET", "path": url.path, "query_string": url.query, "headers": []}
        get = asyncio.create_task(sio.app()(scope, receive, send))
        await until(lambda: all(each.transport.getting for each in sio._core.clients.values()))
        leaves.set()
        await sio.emit("news")
        await get
        assert not answers
        assert sio.stats.ended == {"transport error": 1}


@pytest.mark.parametrize(
    ("method", "query", "status", "code"),
    [
        ("POST", "", 400, 2),
        ("GET", "&sid=unknown", 400, 1),
        ("PUT", "", 400, 2),
    ],
)
async def test_wrong_request_is_answered_with_the_protocols_error(
    method: str, query: str, status: int, code: int
) -> None:
    async with serving(Server(), native=True) as port, httpx.AsyncClient() as http:
        answer = await http.request(method, f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling{query}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_foreign_pages_are_refused_and_listed_ones_get_their_headers() -> None:
    sio = Server(cors_origins=("https://app.example.com",))
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{port}/socket.io/?EIO=4&transport=polling"
        foreign = await http.get(url, headers={"Origin": "https://evil.example.com"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
        listed = await http.get(url, headers={"Origin": "https://app.example.com"})
        assert listed.headers["access-control-allow-origin"] == "https://app.example.com"
        assert listed.headers["access-control-allow-credentials"] == "true"
        assert (await http.options(url, headers={"Origin": "https://app.example.com"})).status_code == 204
        assert (await http.options(url, headers={"Origin": "https://evil.example.com"})).status_code == 403


async def test_upgrade_takes_the_session_over_and_polling_is_refused_from_then_on(native: bool) -> None:
    sio = Server()
    async with serving(sio, native=native) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        ws_url = client.url.replace("http:", "ws:").replace("transport=polling", "transport=websocket")
        pending = asyncio.create_task(client.get())
        socket = await ws_connect(ws_url)
        await socket.send("2probe")
        assert await socket.recv() == "3probe"
        assert (await pending).text == "6"
        second = await ws_connect(ws_url)
        with pytest.raises(ConnectionClosed):
            await second.recv()
        await sio.emit("waiting", 1)
        await socket.send("5")
        assert await socket.recv() == '42["waiting",1]'
        assert (await client.get()).json()["code"] == 3
        await sio.emit("after", 2)
        assert await socket.recv() == '42["after",2]'
        await socket.close()
        await until(lambda: sio.stats.connections == 0)


async def test_failed_upgrade_leaves_the_session_on_polling(native: bool) -> None:
    sio = Server()
    async with serving(sio, native=native) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        ws_url = client.url.replace("http:", "ws:").replace("transport=polling", "transport=websocket")
        for wrong in ("5", "junk", "2probe!"):
            socket = await ws_connect(ws_url)
            await socket.send(wrong)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        waiting = asyncio.create_task(client.get())
        await sio.emit("still", "polling")
        assert (await waiting).text == '42["still","polling"]'


async def test_session_that_nobody_polls_is_bounded_and_ends() -> None:
    sio = Server(send_bytes_max=10_000, volatile_bytes_max=1_000)
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        await sio.emit("volatile", "x" * 500, volatile=True)
        assert sio.stats.volatile_dropped == 1
        for _ in range(30):
            await sio.emit("big", "x" * 500)
        assert sio.stats.ended == {"slow client": 1}


async def test_answers_have_the_types_that_official_clients_expect_and_are_kept_by_no_cache() -> None:
    async with serving(Server(), native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        opened = await http.get(client.url)
        await client.join()
        polled = await client.get_after("40/unknown,")
        posted = await client.post("3")
        refused = await http.get(client.url.replace("EIO=4", "EIO=3"))
        assert [answer.headers["content-type"] for answer in (opened, polled, posted, refused)] == [
            "text/plain; charset=UTF-8",
            "text/plain; charset=UTF-8",
            "text/html",
            "application/json",
        ]
        assert {answer.headers["cache-control"] for answer in (opened, polled, posted, refused)} == {"no-store"}


async def test_parameters_that_the_protocol_does_not_know_are_ignored() -> None:
    async with serving(Server(), native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        client.url += "&t=abc.1&j=0&b64=1&token=x"
        await client.join()
        assert (await client.post("3")).text == "ok"


async def test_head_opens_nothing_and_a_preflight_allows_what_it_asks_for() -> None:
    sio = Server(cors_origins=("https://app.example.com",))
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        head = await http.head(client.url)
        assert (head.status_code, head.content) == (400, b"")
        origin = {"Origin": "https://app.example.com"}
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-token, x-more"}
        preflight = await http.options(client.url, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "x-token, x-more"
        assert preflight.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        plain = await http.options(client.url, headers=origin)
        assert plain.headers["access-control-allow-headers"] == "Content-Type, Authorization"
        refused = await http.get(client.url.replace("EIO=4", "EIO=3"), headers=origin)
        assert refused.headers["access-control-allow-origin"] == origin["Origin"]  # so that the page may read why
        assert sio.stats.opened == 0


async def test_one_body_holds_any_number_of_packets() -> None:
    sio = Server()
    seen: list[int] = []
    sio.on("n", lambda sid, number: seen.append(number))
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        body = "\x1e".join(f'42["n",{number}]' for number in range(5_000))
        assert (await http.post(client.url, content=body, timeout=20)).text == "ok"
        assert seen == list(range(5_000))


@asynccontextmanager
async def _long_post() -> AsyncIterator[tuple[Server, Polling, asyncio.Task[httpx.Response], asyncio.Event]]:
    """A client whose POST holds more events than may wait for handlers: it is answered once the event is set."""
    sio = Server(backlog_max=1)
    gate = asyncio.Event()

    @sio.event
    async def slow(sid: str) -> None:
        await gate.wait()

    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        post = asyncio.create_task(client.post('42["slow"]\x1e42["slow"]\x1e42["slow"]'))
        await until(lambda: any(each.pauses for each in sio._core.clients.values()))
        yield sio, client, post, gate


async def test_second_post_beside_one_under_way_ends_the_session() -> None:
    async with _long_post() as (sio, client, first, gate):
        assert (await client.post("3")).status_code == 400
        gate.set()
        await first
        await until(lambda: sio.stats.connections == 0)


async def test_post_that_outlasts_the_upgrade_opens_no_way_back_to_polling() -> None:
    async with _long_post() as (sio, client, post, gate):
        ws_url = client.url.replace("http:", "ws:").replace("transport=polling", "transport=websocket")
        async with ws_connect(ws_url) as socket:
            await socket.send("2probe")
            assert await socket.recv() == "3probe"
            await socket.send("5")
            await until(lambda: all(each.transport.name == "websocket" for each in sio._core.clients.values()))
            gate.set()
            assert (await post).text == "ok"
            assert (await client.post("3")).json()["code"] == 3
            assert (await client.get()).json()["code"] == 3
            assert sio.stats.connections == 1


async def test_get_right_behind_the_post_that_closed_its_session_gets_the_end_once() -> None:
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        assert (await client.post("1")).text == "ok"
        await until(lambda: sio.stats.connections == 0)
        late = await client.get()
        assert (late.status_code, late.text) == (200, "6")
        assert (await client.get()).json()["code"] == 1
        # But not one whose session was ended for a fault, or that had been told.
        faulty, told = Polling(http, port), Polling(http, port)
        await faulty.join()
        await faulty.post("junk")
        assert (await faulty.get()).json()["code"] == 1
        await told.join()
        pending = asyncio.create_task(told.get())
        await until(lambda: all(each.transport.getting for each in sio._core.clients.values()))
        await told.post("1")
        assert (await pending).text == "6"
        assert (await told.get()).json()["code"] == 1


async def _send_away(sio: Server) -> None:
    await sio.emit("last", "word")
    await sio.disconnect_sockets(close=True)


async def _drain(sio: Server) -> None:
    await sio.drain(0.1)


@pytest.mark.parametrize(("send_away", "said"), [(_send_away, ['42["last","word"]', "41"]), (_drain, ['42["bye"'])])
@pytest.mark.parametrize("waits", [True, False])
async def test_who_is_sent_away_hears_what_was_sent_before_and_then_the_end(
    send_away: Callable[[Server], Awaitable[None]], said: list[str], waits: bool
) -> None:
    # Official clients hear of a close at once and of events in their next turn, so one answer must not hold both.
    sio = Server(drain_event="bye")
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        pending = asyncio.create_task(client.get()) if waits else None
        if waits:
            await until(lambda: all(each.transport.getting for each in sio._core.clients.values()))
        await send_away(sio)
        await until(lambda: sio.stats.connections == 0)
        first = await (pending or client.get())
        packets = first.text.split("\x1e")
        assert [packet[: len(expected)] for packet, expected in zip(packets, said, strict=True)] == said
        assert (await client.get()).text == "1"
        assert (await client.get()).json()["code"] == 1


@pytest.mark.parametrize("waits", [True, False])
async def test_who_is_sent_away_may_still_say_that_it_goes_and_what_it_had_to_say(waits: bool) -> None:
    # Official clients answer the end of their last namespace with a close, and may have an event on its way.
    sio = Server()
    heard: list[str] = []
    sio.on("late", heard.append)
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        pending = asyncio.create_task(client.get()) if waits else None
        if waits:
            await until(lambda: all(each.transport.getting for each in sio._core.clients.values()))
        await sio.disconnect_sockets(close=True)
        late = await client.post('42["late"]')
        assert (late.status_code, late.text) == (200, "ok")
        assert (await (pending or client.get())).text == "41"
        answer = await client.post("1")
        assert (answer.status_code, answer.text) == (200, "ok")
        assert not heard
        # But not a session that was ended for a fault.
        faulty = Polling(http, port)
        await faulty.join()
        await faulty.post("junk")
        assert (await faulty.post("1")).json()["code"] == 1


@pytest.mark.parametrize("polls", [True, False])
async def test_who_is_sent_away_in_mid_upgrade_and_polls_no_more_is_refused(polls: bool) -> None:
    # The official client that has paused polling for a WebSocket which is gone begins anew when a POST of it fails, and
    # otherwise only when it has missed a ping.
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        pending = asyncio.create_task(client.get())
        await until(lambda: all(each.transport.getting for each in sio._core.clients.values()))
        async with ws_connect(client.url.replace("http:", "ws:").replace("=polling", "=websocket")) as socket:
            await socket.send("2probe")
            assert await socket.recv() == "3probe"
            assert (await pending).text == "6"
            await sio.disconnect_sockets(close=True)
            if polls:  # it had given up the WebSocket
                assert (await client.get()).text == "41"
            answer = await client.post("1")
            assert answer.status_code == (200 if polls else 400)


async def test_requests_after_the_end_are_waited_for_so_long_and_of_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flotta.realtime.engine.sessions.PARTED_MAX", 2)
    sio = Server()
    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        clients = [Polling(http, port) for _ in range(3)]
        for client in clients:
            await client.join()
        await sio.disconnect_sockets(close=True)
        assert sorted([(await client.post("1")).status_code for client in clients]) == [200, 200, 400]
        now_s = asyncio.get_running_loop().time()
        timers = [timer for _, timer in sio._core._parted.values()]
        assert len(timers) == 2
        assert all(timer.when() - now_s <= SENT_AWAY_S for timer in timers)


async def test_who_is_sent_away_hears_it_through_another_instance(valkey_url: str, unique: str) -> None:
    here, there = (Server(valkey_url, channel_prefix=unique, native=False) for _ in range(2))
    async with (
        serving(here, native=False) as port,
        serving(there, native=False) as other,
        httpx.AsyncClient() as http,
    ):
        client = Polling(http, port)
        await client.join()
        client.url = client.url.replace(str(port), str(other), 1)
        await _send_away(here)
        assert (await client.post("3")).text == "ok"
        assert (await client.get()).text == '42["last","word"]\x1e41'
        assert (await client.get()).text == "1"
        assert (await client.get()).json()["code"] == 1


@pytest.mark.parametrize("before", [["connect"], []])
async def test_client_that_is_cut_off_by_its_acceptance_is_told_of_to_its_handler(before: list[str]) -> None:
    sio = Server(send_bytes_max=2_000, volatile_bytes_max=1_000)
    told: list[str] = []
    for event in before:
        sio.on(event, lambda *_: told.append("connect"), namespace="/room")

    @sio.event(namespace="/room")
    def disconnect(sid: str, reason: str) -> None:
        told.append(reason)

    async with serving(sio, native=True) as port, httpx.AsyncClient() as http:
        client = Polling(http, port)
        await client.join()
        await sio.emit("fill", "x" * 1_980)  # with the answer to come it is too much
        await client.post("40/room,")
        await until(lambda: sio.stats.connections == 0)
        await until(lambda: told == [*before, "slow client"])
        assert not sio._core.spaces["/room"].leaving
