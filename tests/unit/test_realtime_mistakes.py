"""What a realtime server says of mistakes: the cause and the cure, where the mistake is made."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from flotta.errors import AckTimeout, ConfigError, RealtimeError, StateError
from flotta.realtime import (
    Emitter,
    EmitterOptions,
    EngineOptions,
    EngineServer,
    Namespace,
    Server,
    ServerOptions,
    SyncEmitter,
)


@pytest.mark.parametrize("adapter", [dict, "stream"])
def test_a_wrong_adapter_is_refused_at_birth(adapter: Any) -> None:
    with pytest.raises((TypeError, ConfigError), match="adapter"):
        Server("redis://127.0.0.1", adapter=adapter)


@pytest.mark.parametrize(
    ("make", "options", "single"),
    [
        (Server, ServerOptions, {"path": "/ws"}),
        (EngineServer, EngineOptions, {"path": "/ws"}),
        (partial(Emitter, "redis://127.0.0.1"), EmitterOptions, {"adapter": "streams"}),
        (partial(SyncEmitter, "redis://127.0.0.1"), EmitterOptions, {"adapter": "streams"}),
    ],
)
def test_options_come_all_in_one_or_singly(make: Callable[..., Any], options: Any, single: dict[str, Any]) -> None:
    assert make(**single).options == make(options=options(**single)).options == options(**single) != options()
    with pytest.raises(TypeError, match="give either options= or single options"):
        make(options=options(), **single)


@pytest.mark.parametrize("value", ["100", 0, -1, (5,)])
def test_a_number_that_is_none_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("connections_max (realtime.ServerOptions)")):
        Server(connections_max=value)


def test_metrics_without_their_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flotta.realtime.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(ModuleNotFoundError, match=r'prometheus-client is missing: pip install "flotta\[server\]"'):
        importlib.import_module("flotta.realtime.metrics")


async def test_a_cap_on_connections_tells_what_limit_to_raise() -> None:
    with capture_logs() as lines:
        async with Server(connections_max=10**8):
            pass
    [line] = lines
    assert (line["wanted"], line["cure"]) == (10**8, "ulimit -n 100000128, or a lower connections_max")


def test_a_server_around_another_one_at_its_path_is_told_at_once() -> None:
    with capture_logs() as lines:
        Server().app(Server(path="/other").app())
        assert lines == []
        Server().app(Server().app())
    [line] = lines
    assert line["event"].startswith("two servers have one path")
    assert line["path"] == "/socket.io"


def test_a_cookie_is_given_by_its_name() -> None:
    with pytest.raises(ConfigError, match="the cookie's name"):
        Server(cookie={"name": "io"})  # type: ignore[arg-type]


def test_a_handler_that_cannot_be_called_is_refused_where_it_is_registered() -> None:
    sio = Server()
    with pytest.raises(TypeError, match="handler of 'chat' must be a function, not 'later'"):
        sio.on("chat", "later")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"handler of 'connect' takes no argument.* sid"):

        @sio.event
        def connect() -> None: ...


@pytest.mark.parametrize("event", ["connect_error", "newListener", "removeListener"])
def test_an_event_that_no_client_can_send_has_no_handler(event: str) -> None:
    class Chat(Namespace):
        pass

    setattr(Chat, f"on_{event}", lambda self, sid: None)
    sio = Server()
    for register in (lambda: sio.on(event, print), lambda: sio.register_namespace(Chat("/chat"))):
        with pytest.raises(ValueError, match=f"'{event}' is an event of Socket.IO itself: no client can send it"):
            register()


@pytest.mark.parametrize(
    ("event", "cure"),
    [("connection", "@sio.event async def connect(sid, environ, auth)"), ("new_namespace", "pattern or a predicate")],
)
def test_an_event_of_nodes_servers_is_told_of_where_it_is_registered(event: str, cure: str) -> None:
    class Chat(Namespace):
        pass

    setattr(Chat, f"on_{event}", lambda self, sid: None)
    sio = Server()
    for register in (lambda: sio.on(event, print), lambda: sio.register_namespace(Chat("/chat"))):
        with capture_logs() as lines:
            register()
        (line,) = lines
        assert line["log_level"] == "warning"
        assert line["realtime_event"] == event
        assert cure in line["cure"]
    with capture_logs() as lines:
        for fine in ("connect", "disconnecting", "disconnect", "message", "error", "*"):
            sio.on(fine, print)
    assert not lines


@pytest.mark.parametrize("event", ["connect", "connection", "new_namespace"])
def test_an_event_that_no_server_can_send_has_no_handler(event: str) -> None:
    with pytest.raises(ValueError, match=f"'{event}' is an event of Node's servers themselves"):
        Server().on_server_side(event, print)


def test_a_decorator_without_its_name_is_refused_and_does_not_swallow_the_function() -> None:
    sio = Server()
    for name in ("on", "on_server_side", "may_see"):
        with pytest.raises(TypeError, match=rf"it takes a name: @sio\.{name}\('"):
            getattr(sio, name)(test_an_event_that_no_client_can_send_has_no_handler)
    for wrong in ("chat", partial(print)):
        with pytest.raises(TypeError, match=r"has no name to be registered under: @sio\.on\('"):
            sio.event(wrong)  # type: ignore[call-overload]


def test_a_filter_that_cannot_answer_at_once_is_refused_where_it_is_registered() -> None:
    # Its answer would be a coroutine, which is not True: nobody would ever get the event.
    async def later(*_: Any) -> bool:
        return True

    class Later:
        async def __call__(self, *_: Any) -> bool:
            return True

    for wrong in (later, partial(later), Later(), "chat"):
        with pytest.raises(TypeError, match="the filter 'mine' must be a function that is not async"):
            Server().may_see("mine")(wrong)  # type: ignore[arg-type]


async def test_another_event_loop_is_told_of_emit_sync_and_sends_nothing() -> None:
    async with Server() as sio:
        calls = (
            lambda: sio.emit("chat", "hello"),
            lambda: sio.call("chat", to="nobody"),
            lambda: sio.enter_room("nobody", "room"),
            lambda: sio.save_session("nobody", {}),
            lambda: sio.disconnect("nobody"),
        )
        for call in calls:
            with pytest.raises(StateError, match=r"another event loop.*emit_sync"):
                await asyncio.to_thread(lambda call=call: asyncio.run(call()))
        await asyncio.to_thread(sio.emit_sync, "chat", "hello")


async def test_an_adapter_without_a_redis_is_told_at_the_start() -> None:
    with capture_logs() as lines:
        async with Server(adapter="streams"):
            pass
        async with Server():
            pass
    (line,) = [line for line in lines if "no Redis" in line["event"]]
    assert line["adapter"] == "streams"
    assert "Server('redis://...')" in line["cure"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"recovery_s": 120.0}, True),  # the default, but said
        ({"options": ServerOptions(recovery_s=60)}, True),
        ({"recovery_s": 60, "adapter": "sharded"}, True),
        ({"recovery_s": None}, False),
        ({"adapter": "classic"}, False),
        ({"recovery_s": 60, "adapter": "streams"}, False),
    ],
)
async def test_recovery_without_the_streams_adapter_is_told_at_the_start(options: dict[str, Any], told: bool) -> None:
    with capture_logs() as lines:
        async with Server(**options):
            pass
    found = [line["cure"] for line in lines if "recovers" in line["event"]]
    assert found == ["adapter='streams', or leave recovery_s out"] * told


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, [1j]])
async def test_what_cannot_travel_says_its_type_and_what_can(value: Any) -> None:
    async with Server() as sio:
        with pytest.raises(TypeError, match=r"^(object|set|complex) cannot travel: send what JSON and bytes can carry"):
            await sio.emit("chat", value)


@pytest.mark.parametrize(
    "target", [{"user": 7}, {"user": ["ada", 7]}, {"room": 7}, {"to": [None]}, {"skip_sid": 7}, {"room": b"harbour"}]
)
async def test_a_target_that_is_no_text_is_refused_and_not_taken_for_an_empty_room(target: dict[str, Any]) -> None:
    async with Server() as sio:
        with pytest.raises(TypeError, match=r"names no room, user or session id: names are text, such as str\("):
            await sio.emit("chat", "hello", **target)


async def test_asking_a_client_that_is_nowhere_says_so() -> None:
    async with Server() as sio:
        with pytest.raises(AckTimeout, match="its client has left, or its session id is nobody's") as raised:
            await sio.call("chat", to="nobody")
    assert raised.value.gone


@pytest.mark.parametrize("room", [7, None, ["harbour"]])
async def test_a_room_that_is_no_text_is_refused_before_anybody_is_in_it(room: Any) -> None:
    async with Server() as sio:
        for call in (partial(sio.enter_room, "sid"), partial(sio.leave_room, "sid"), sio.close_room):
            with pytest.raises(TypeError, match="names no room, user or session id: names are text"):
                await call(room)


async def test_a_namespace_that_is_no_text_is_one_that_is_not_there() -> None:
    async with Server() as sio:
        with pytest.raises(RealtimeError, match="there is no namespace None"):
            await sio.emit("chat", namespace=None)  # type: ignore[arg-type]


async def ask(sio: Server, query: str) -> tuple[int, bytes]:
    """The answer to a GET of the server's path."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/socket.io/", "query_string": query.encode(), "headers": []}
    await sio.app()(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_clients_of_a_server_that_nobody_has_started_are_told_of_in_the_log_with_the_cure() -> None:
    with capture_logs() as lines:
        status, body = await ask(Server(), "EIO=4&transport=polling")
    assert (status, body) == (503, b'{"code":4,"message":"Server has not started"}')
    (line,) = [line for line in lines if "has not started" in line["event"]]
    assert "await start()" in line["cure"]


@pytest.mark.parametrize(("version", "told"), [("3", True), ("2", True), ("", False), ("nmap", False)])
async def test_clients_that_are_too_old_are_told_of_in_the_log_and_scanners_are_not(version: str, told: bool) -> None:
    async with Server() as sio:
        with capture_logs() as lines:
            assert (await ask(sio, f"EIO={version}&transport=polling"))[0] == 400
    assert [line["cure"] for line in lines] == ["socket.io-client 3 or newer, which speaks Engine.IO 4"] * told


@pytest.mark.parametrize("to", [None, ["one", "other"], 7])
async def test_call_asks_one_client_and_says_what_asks_several(to: Any) -> None:
    async with Server() as sio:
        with pytest.raises(TypeError, match="call needs to=, one session id; call_all asks several clients"):
            await sio.call("chat", to=to)
