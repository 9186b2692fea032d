"""The rules of the official protocol suites, each under its own name, over raw HTTP and WebSockets, without npm.

Two classes, one per suite; the rules that both have are in one base, run against both servers. `make conformance` runs
the suites themselves (tests/conformance).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformance_client import Endpoint, ended, next_message, ping
from realtime_fixtures import native, serving, until

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))

from served import make_engine, make_socketio

__all__ = ["native"]

KEYS = {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}
PING_INTERVAL_S, PING_TIMEOUT_S = 0.3, 0.2
PATIENT = {"ping_timeout_s": 5.0}
"""Where the suites' 0.2 s for an answer are not the rule under test: a loaded machine may be later than that."""
POLLING, WEBSOCKET = "EIO=4&transport=polling", "EIO=4&transport=websocket"
BAD_VERSIONS = ("transport={}", "EIO=abc&transport={}")
BAD_TRANSPORTS = ("EIO=4", "EIO=4&transport=abc")


def _check_opening(facts: dict[str, Any], upgrades: list[str]) -> None:
    assert set(facts) == KEYS
    assert isinstance(facts["sid"], str)
    assert facts["upgrades"] == upgrades
    assert (facts["pingInterval"], facts["pingTimeout"], facts["maxPayload"]) == (300, 200, 1_000_000)


@asynccontextmanager
async def _endpoint(server: Any, path: str, *, native: bool) -> AsyncIterator[Endpoint]:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(server, native=native))
        http = await stack.enter_async_context(httpx.AsyncClient())
        yield Endpoint(http, port, path, getattr(server, "_core", None) or server._engine)


class EngineRules:
    """What holds for both servers."""

    # --- handshake ---

    async def test_handshake_polling_successfully_opens_a_session(self, strict: Endpoint) -> None:
        answer = await strict.request("GET", POLLING)
        assert answer.status_code == 200
        assert answer.text.startswith("0")
        _check_opening(json.loads(answer.text[1:]), ["websocket"])

    async def test_handshake_polling_fails_with_an_invalid_eio_query_parameter(self, server: Endpoint) -> None:
        for query in BAD_VERSIONS:
            assert (await server.request("GET", query.format("polling"))).status_code == 400

    async def test_handshake_polling_fails_with_an_invalid_transport_query_parameter(self, server: Endpoint) -> None:
        for query in BAD_TRANSPORTS:
            assert (await server.request("GET", query)).status_code == 400

    async def test_handshake_polling_fails_with_an_invalid_request_method(self, server: Endpoint) -> None:
        for method in ("POST", "PUT"):
            assert (await server.request(method, POLLING)).status_code == 400

    async def test_handshake_websocket_successfully_opens_a_session(self, strict: Endpoint) -> None:
        _socket, facts = await strict.open_websocket()
        _check_opening(facts, [])

    async def test_handshake_websocket_fails_with_an_invalid_eio_query_parameter(self, server: Endpoint) -> None:
        for query in BAD_VERSIONS:
            assert await server.refused_websocket(query.format("websocket")) in {400, 403}

    async def test_handshake_websocket_fails_with_an_invalid_transport_query_parameter(self, server: Endpoint) -> None:
        for query in BAD_TRANSPORTS:
            assert await server.refused_websocket(query) in {400, 403}

    # --- heartbeat ---

    async def test_heartbeat_polling_sends_ping_pong_packets(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        for _ in range(3):
            answer = await server.poll(sid)
            assert (answer.status_code, answer.text) == (200, "2")
            assert (await server.post(sid, "3")).status_code == 200

    async def test_heartbeat_polling_closes_the_session_upon_ping_timeout(self, strict: Endpoint) -> None:
        sid = await strict.open_polling()
        began_s = asyncio.get_running_loop().time()
        await until(lambda: not strict.sessions(), 5)
        assert asyncio.get_running_loop().time() - began_s > PING_INTERVAL_S + PING_TIMEOUT_S - 0.05
        assert (await strict.poll(sid)).status_code == 400

    async def test_heartbeat_websocket_sends_ping_pong_packets(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        for _ in range(3):
            await ping(socket)
            await socket.send("3")

    async def test_heartbeat_websocket_closes_the_session_upon_ping_timeout(self, strict: Endpoint) -> None:
        socket, _ = await strict.open_websocket()
        began_s = asyncio.get_running_loop().time()
        await ended(socket)
        assert asyncio.get_running_loop().time() - began_s > PING_INTERVAL_S + PING_TIMEOUT_S - 0.05

    # --- close ---

    async def test_close_polling_forcefully_closes_the_session(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        answer, _ = await asyncio.gather(server.poll(sid), server.post(sid, "1"))
        assert (answer.status_code, answer.text) == (200, "6")
        assert (await server.poll(sid)).status_code == 400

    async def test_close_websocket_forcefully_closes_the_session(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send("1")
        await ended(socket)

    # --- upgrade ---

    async def test_upgrade_successfully_upgrades_from_polling_to_websocket(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        socket = await server.websocket(f"{WEBSOCKET}&sid={sid}")
        await socket.send("2probe")
        assert await next_message(socket) == "3probe"
        answer = await server.poll(sid)
        assert (answer.status_code, answer.text) == (200, "6")  # a noop ends the request under way
        await socket.send("5")
        await ping(socket)  # the session lives on over the new transport

    async def test_upgrade_ignores_http_requests_with_same_sid_after_upgrade(self, server: Endpoint) -> None:
        sid, socket = await server.upgraded()
        assert (await server.poll(sid)).status_code == 400
        await ping(socket)

    async def test_upgrade_ignores_websocket_with_same_sid_after_upgrade(self, server: Endpoint) -> None:
        sid, socket = await server.upgraded()
        await ended(await server.websocket(f"{WEBSOCKET}&sid={sid}"))
        await ping(socket)


class TestEngineIO(EngineRules):
    """docs/engine.io-protocol/v4-test-suite."""

    @pytest.fixture
    async def server(self, native: bool) -> AsyncIterator[Endpoint]:
        async with _endpoint(make_engine(**PATIENT), "/engine.io/", native=native) as endpoint:
            yield endpoint

    @pytest.fixture
    async def strict(self, native: bool) -> AsyncIterator[Endpoint]:
        async with _endpoint(make_engine(), "/engine.io/", native=native) as endpoint:
            yield endpoint

    # --- message ---

    @pytest.mark.parametrize(
        "body",
        ["4hello", "4test1\x1e4test2\x1e4test3", "4hello\x1ebAQIDBA=="],
        ids=["one_plain_text_packet", "several_plain_text_packets", "plain_text_and_binary_packets"],
    )
    async def test_message_polling_sends_and_receives_a_payload_containing(self, server: Endpoint, body: str) -> None:
        sid = await server.open_polling()
        pushed = await server.post(sid, body)
        assert (pushed.status_code, pushed.text) == (200, "ok")
        pulled = await server.poll(sid)
        assert (pulled.status_code, pulled.text) == (200, body)

    async def test_message_polling_closes_the_session_upon_invalid_packet_format(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        assert (await server.post(sid, "abc")).status_code == 400
        assert (await server.poll(sid)).status_code == 400

    async def test_message_polling_closes_the_session_upon_duplicate_poll_requests(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        first = server.polling(sid)
        await until(server.waiting)  # the second comes while the first waits
        second = await server.request("GET", f"{POLLING}&sid={sid}&t=burst")
        assert ((await first).status_code, (await first).text) == (200, "1")
        assert second.status_code == 400
        assert (await server.poll(sid)).status_code == 400

    async def test_message_polling_closes_the_session_upon_cancelled_polling_request(self, server: Endpoint) -> None:
        sid = await server.open_polling()
        poll = server.polling(sid)
        await until(server.waiting)  # it is under way
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)
        assert (await server.poll(sid)).status_code == 400

    async def test_message_websocket_sends_and_receives_a_plain_text_packet(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send("4hello")
        assert await next_message(socket) == "4hello"

    async def test_message_websocket_sends_and_receives_a_binary_packet(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send(b"\x01\x02\x03\x04")
        assert await next_message(socket) == b"\x01\x02\x03\x04"

    async def test_message_websocket_closes_the_session_upon_invalid_packet_format(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send("abc")
        await ended(socket)

    # --- upgrade: what the Socket.IO suite leaves out ---

    async def test_upgrade_messages_follow_over_the_new_transport(self, server: Endpoint) -> None:
        sid, socket = await server.upgraded()
        await ended(await server.websocket(f"{WEBSOCKET}&sid={sid}"))
        await socket.send("4hello")
        assert await next_message(socket) == "4hello"


class TestSocketIO(EngineRules):
    """docs/socket.io-protocol/v5-test-suite."""

    @pytest.fixture
    async def server(self, native: bool) -> AsyncIterator[Endpoint]:
        # Three heartbeats nearly use up the suite's second for the connect.
        options = {**PATIENT, "connect_timeout_s": 5.0}
        async with _endpoint(make_socketio(**options), "/socket.io/", native=native) as endpoint:
            yield endpoint

    @pytest.fixture
    async def strict(self, native: bool) -> AsyncIterator[Endpoint]:
        async with _endpoint(make_socketio(), "/socket.io/", native=native) as endpoint:
            yield endpoint

    # --- connect ---

    @pytest.mark.parametrize(
        ("packet", "namespace", "auth"),
        [
            ("40", "", "{}"),
            ('40{"token":"123"}', "", '{"token":"123"}'),
            ("40/custom,", "/custom,", "{}"),
            ('40/custom,{"token":"abc"}', "/custom,", '{"token":"abc"}'),
        ],
        ids=["main_namespace", "main_namespace_with_payload", "custom_namespace", "custom_namespace_with_payload"],
    )
    async def test_connect_allows_connection_to_the(
        self, server: Endpoint, packet: str, namespace: str, auth: str
    ) -> None:
        socket, _ = await server.open_websocket()
        await socket.send(packet)
        answer = str(await next_message(socket))
        assert answer.startswith(f"40{namespace}")
        told = json.loads(answer.removeprefix(f"40{namespace}"))
        assert set(told) == {"sid"}
        assert isinstance(told["sid"], str)
        assert await next_message(socket) == f'42{namespace}["auth",{auth}]'

    async def test_connect_disallows_connection_to_an_unknown_namespace(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send("40/random")
        assert await next_message(socket) == '44/random,{"message":"Invalid namespace"}'

    async def test_connect_disallows_connection_with_an_invalid_handshake(self, server: Endpoint) -> None:
        socket, _ = await server.open_websocket()
        await socket.send("4abc")
        await ended(socket)

    async def test_connect_closes_the_connection_if_no_handshake_is_received(self, native: bool) -> None:
        async with _endpoint(make_socketio(**PATIENT), "/socket.io/", native=native) as server:
            socket, _ = await server.open_websocket()
            for _ in range(2):  # it answers every ping, and is sent away all the same
                await ping(socket)
                await socket.send("3")
            assert await ended(socket) == 1008

    # --- disconnect ---

    async def test_disconnect_disconnects_from_the_main_namespace(self, server: Endpoint) -> None:
        socket = await self._joined(server)
        await socket.send("41")
        await ping(socket)

    async def test_disconnect_connects_then_disconnects_from_a_custom_namespace(self, server: Endpoint) -> None:
        socket = await self._joined(server)
        await ping(socket)
        await socket.send("40/custom")
        assert str(await next_message(socket)).startswith("40/custom,")
        assert str(await next_message(socket)).startswith("42/custom,")
        await socket.send("41/custom")
        await socket.send('42["message","message to main namespace"]')
        assert await next_message(socket) == '42["message-back","message to main namespace"]'

    # --- message ---

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [
            ('42["message",1,"2",{"3":[true]}]', '42["message-back",1,"2",{"3":[true]}]'),
            ('42456["message-with-ack",1,"2",{"3":[false]}]', '43456[1,"2",{"3":[false]}]'),
        ],
        ids=["plain_text_packet", "plain_text_packet_with_an_ack"],
    )
    async def test_message_sends_a(self, server: Endpoint, sent: str, expected: str) -> None:
        socket = await self._joined(server)
        await socket.send(sent)
        assert await next_message(socket) == expected

    @pytest.mark.parametrize(
        ("sent", "expected"),
        [("452-[", '452-["message-back",'), ("452-789[", "462-789[")],
        ids=["attachments", "attachments_and_an_ack"],
    )
    async def test_message_sends_a_packet_with_binary(self, server: Endpoint, sent: str, expected: str) -> None:
        socket = await self._joined(server)
        name = "message-with-ack" if "789" in sent else "message"
        places = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
        for part in (f'{sent}"{name}",{places}', b"\x01\x02\x03", b"\x04\x05\x06"):
            await socket.send(part)
        packets = [await next_message(socket) for _ in range(3)]
        assert packets == [expected + places, b"\x01\x02\x03", b"\x04\x05\x06"]

    @pytest.mark.parametrize(
        "bad",
        ["4abc", "42{}", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
        ids=["unknown_packet_type", "invalid_payload_format", "invalid_ack_id"],
    )
    async def test_message_closes_the_connection_upon_invalid_format(self, server: Endpoint, bad: str) -> None:
        socket = await self._joined(server)
        await socket.send(bad)
        await ended(socket)

    async def _joined(self, server: Endpoint) -> Any:
        socket, _ = await server.open_websocket()
        await socket.send("40")
        assert str(await next_message(socket)).startswith("40{")
        assert await next_message(socket) == '42["auth",{}]'
        return socket
