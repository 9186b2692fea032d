"""Namespaces that patterns make, middleware, class namespaces and the last handlers, over real connections."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect

from flotta.errors import ConfigError, ConnectRefused, NotStarted, RealtimeError, StateError
from flotta.realtime import Namespace, Server
from flotta.realtime.adapters import AdapterStats
from flotta.realtime.adapters.memory import MemoryAdapter
from realtime_fixtures import serving, until


class Client:
    """A connection that joins namespaces and speaks by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def recv(self) -> str:
        return str(await asyncio.wait_for(self.socket.recv(), 5))

    async def ask(self, namespace: str, auth: str = "") -> str:
        """Ask to come in; the answer."""
        await self.socket.send(f"40{namespace},{auth}" if namespace else "40")
        return await self.recv()

    async def join(self, namespace: str, auth: str = "") -> str:
        """Come in; the session id."""
        answer = await self.ask(namespace, auth)
        assert answer.startswith(f"40{namespace},"), answer
        return str(json.loads(answer.partition(",")[2])["sid"])

    async def refused(self, namespace: str, auth: str = "") -> Any:
        """Be turned away; the message."""
        answer = await self.ask(namespace, auth)
        assert answer.startswith(f"44{namespace},"), answer
        return json.loads(answer.partition(",")[2])["message"]

    async def call(self, namespace: str, *event: Any) -> list[Any]:
        """An event; its acknowledgement."""
        await self.socket.send(f"42{namespace},7{json.dumps(event)}")
        answer = await self.recv()
        assert answer.startswith(f"43{namespace},7"), answer
        return list(json.loads(answer.partition(",7")[2]))

    async def leave(self, namespace: str) -> None:
        await self.socket.send(f"41{namespace},")


@asynccontextmanager
async def _clients(sio: Server, count: int = 1) -> AsyncIterator[list[Client]]:
    async with serving(sio, native=True) as port:
        clients = []
        for _ in range(count):
            clients.append(Client(await ws_connect(f"ws://127.0.0.1:{port}/socket.io/?EIO=4&transport=websocket")))
            assert (await clients[-1].recv()).startswith("0{")
        yield clients
        for client in clients:
            await client.socket.close()


async def _come_and_go(sio: Server, client: Client) -> None:
    """Join the namespace and leave it while the server still decides."""
    await client.socket.send("40")
    await until(lambda: len(sio._core.spaces["/"].rooms) == 1)
    await client.socket.send("41")
    await until(lambda: len(sio._core.spaces["/"].rooms) == 0)


class Opened:
    """An adapter of one's own that notes which namespaces it was told of."""

    alone = True
    echoes = False

    def __init__(self) -> None:
        self._inner = MemoryAdapter()
        self.told: list[tuple[str, str]] = []
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.error: Exception | None = None

    async def open_namespace(self, namespace: str) -> None:
        self.told.append(("open", namespace))
        await self.may_open.wait()
        if self.error is not None:
            raise self.error

    async def close_namespace(self, namespace: str) -> None:
        self.told.append(("close", namespace))

    @property
    def stats(self) -> AdapterStats:
        return self._inner.stats

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


# --- patterns ---


async def test_pattern_makes_namespaces_whose_handlers_know_their_name() -> None:
    sio = Server()
    rooms = re.compile(r"/room-\d+")

    @sio.on("say", namespace=rooms)
    async def say(namespace: str, sid: str, text: str) -> str:
        await sio.emit("said", text, namespace=namespace, skip_sid=sid)
        return f"{namespace} {text}"

    async with _clients(sio, 3) as (ada, ben, cleo):
        await ada.join("/room-1")
        await ben.join("/room-1")
        await cleo.join("/room-22")
        assert await ada.call("/room-1", "say", "hello") == ["/room-1 hello"]
        assert await ben.recv() == '42/room-1,["said","hello"]'
        assert await cleo.call("/room-22", "say", "alone") == ["/room-22 alone"]
        for name in ("/room-1x", "/x/room-1", "/room-", "/room-1 ", "/other"):
            assert await cleo.refused(name) == "Invalid namespace"
        await sio.emit("never heard", namespace="/room-99")  # nobody is in it here, but elsewhere somebody may be
        with pytest.raises(RealtimeError, match="no namespace '/other'"):
            await sio.emit("e", namespace="/other")


async def test_predicate_decides_on_every_client_sync_or_async() -> None:
    sio = Server()
    asked = []

    async def mine(name: str, auth: Any, environ: dict[str, Any]) -> bool:
        await asyncio.sleep(0)
        asked.append((name, environ["REQUEST_METHOD"]))
        return name == f"/home/{(auth or {}).get('user')}"

    def theirs(name: str, auth: Any, _environ: dict[str, Any]) -> bool:
        if auth == {"user": "raiser"}:
            raise ConnectRefused("not you", {"code": 1})
        return name.startswith("/home/") and auth == {"user": "root"}

    sio.on("who", lambda namespace, _sid: ("mine", namespace), namespace=mine)
    sio.on("who", lambda namespace, _sid: ("theirs", namespace), namespace=theirs)
    async with _clients(sio, 3) as (ada, ben, root):
        await ada.join("/home/ada", '{"user":"ada"}')
        assert await ada.call("/home/ada", "who") == ["mine", "/home/ada"]
        # The namespace is there, and is mine's: it decides again, and theirs is not asked any more.
        assert await ben.refused("/home/ada", '{"user":"ben"}') == "Invalid namespace"
        assert await root.refused("/home/ada", '{"user":"root"}') == "Invalid namespace"
        assert asked == [("/home/ada", "GET")] * 3
        await root.join("/home/cleo", '{"user":"root"}')
        assert await root.call("/home/cleo", "who") == ["theirs", "/home/cleo"]
        assert await ben.refused("/home/dan", '{"user":"raiser"}') == "not you"
        assert set(sio._core.spaces) == {"/", "/home/ada", "/home/cleo"}


async def test_any_namespace_is_the_last_resort_of_events_and_names() -> None:
    sio = Server()
    sio.on("own", lambda sid: "own", namespace="/named")
    sio.on("shared", lambda namespace, sid, *data: ("shared", namespace, *data), namespace="*")
    sio.on("*", lambda event, namespace, sid, *data: ("rest", event, namespace, *data), namespace="*")
    sio.on("one", lambda namespace, sid: ("pattern", namespace), namespace=re.compile("/p.*"))
    async with _clients(sio) as (client,):
        for name in ("/named", "/anything", "/pattern"):
            await client.join(name)
            assert await client.call(name, "shared", 1) == ["shared", name, 1]
            assert await client.call(name, "other", 2) == ["rest", "other", name, 2]
        assert await client.call("/named", "own") == ["own"]
        assert await client.call("/pattern", "one") == ["pattern", "/pattern"]
        assert await client.call("/anything", "one") == ["rest", "one", "/anything"]


@pytest.mark.parametrize("name", ["/a*", "/a#b", "/a[b]", "/a?b", "/a\\b", "/a b", "/", "/a\x7f"])
async def test_dynamic_names_hold_nothing_that_has_a_meaning_in_channels(name: str) -> None:
    sio = Server(namespaces="*")
    async with _clients(sio) as (client,):
        if name == "/":
            assert (await client.ask("")).startswith("40{")
        elif "?" in name:  # the rest is a query, as Node has it
            assert not sio._core.namespaces.known(name)
        else:
            assert await client.refused(name) == "Invalid namespace"
        await client.join("/ok")


async def test_namespaces_without_handlers_are_accepted_if_listed() -> None:
    async with _clients(Server(namespaces=("/news",))) as (client,):
        await client.join("/news")
        assert await client.refused("/other") == "Invalid namespace"
    async with _clients(Server(namespaces="*")) as (client,):
        await client.join("/other")
    with pytest.raises(ConfigError, match="namespaces"):
        Server(namespaces="/news")


async def test_middleware_alone_opens_no_namespace() -> None:
    sio = Server()
    sio.use(lambda namespace, sid, environ, auth: None, namespace="*")
    async with _clients(sio) as (client,):
        assert await client.refused("/other") == "Invalid namespace"


# --- what hostile clients cost ---


async def test_who_is_turned_away_leaves_nothing_and_costs_the_adapter_nothing() -> None:
    adapter = Opened()
    sio = Server(adapter=adapter)
    sio.on("connect", lambda namespace, sid, environ, auth: auth == {"good": 1}, namespace="*")
    async with _clients(sio, 2) as (hostile, good):
        for at in range(50):
            assert await hostile.refused(f"/n{at}") == "Connection rejected by server"
        assert set(sio._core.spaces) == {"/"}
        assert adapter.told == []
        await good.join("/n1", '{"good":1}')
        assert adapter.told == [("open", "/n1")]


async def test_number_of_dynamic_namespaces_is_bounded_and_empty_ones_make_room() -> None:
    adapter = Opened()
    sio = Server(adapter=adapter, namespaces="*", namespaces_max=2)
    async with _clients(sio) as (client,):
        await client.join("/a")
        await client.join("/b")
        assert await client.refused("/c") == "Too many namespaces"
        await client.leave("/a")
        await client.join("/c")
        await until(lambda: ("close", "/a") in adapter.told)
        assert set(sio._core.spaces) == {"/", "/b", "/c"}
        assert await client.refused("/a") == "Too many namespaces"


async def test_empty_namespace_is_kept_for_a_while_then_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flotta.realtime.namespaces.EMPTY_S", 0.05)
    adapter = Opened()
    sio = Server(adapter=adapter, namespaces="*")
    async with _clients(sio) as (client,):
        await client.join("/a")
        first = sio._core.spaces["/a"]
        await client.leave("/a")
        await client.join("/a")
        assert sio._core.spaces["/a"] is first
        await client.leave("/a")
        await until(lambda: "/a" not in sio._core.spaces)
        await until(lambda: adapter.told == [("open", "/a"), ("close", "/a")])
        await client.join("/a")
        assert adapter.told[-1] == ("open", "/a")


async def test_namespace_that_somebody_comes_back_to_or_visits_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flotta.realtime.namespaces.EMPTY_S", 0.05)
    sio = Server(namespaces="*")

    async def let_time_pass(client: Client) -> None:
        """A namespace that is left after all others is removed after them."""
        await client.join("/clock")
        await client.leave("/clock")
        await until(lambda: "/clock" not in sio._core.spaces)

    async with _clients(sio) as (client,):
        await client.join("/a")
        await client.leave("/a")
        await client.join("/a")
        await let_time_pass(client)
        assert "/a" in sio._core.spaces
        async with sio._core.namespaces.visited("/a"):
            await client.leave("/a")
            await let_time_pass(client)
            assert "/a" in sio._core.spaces
        await until(lambda: "/a" not in sio._core.spaces)


async def test_adapter_knows_the_namespace_before_the_client_is_in() -> None:
    adapter = Opened()
    adapter.may_open.clear()
    sio = Server(adapter=adapter, namespaces="*")
    async with _clients(sio, 2) as (ada, ben):
        await ada.socket.send("40/a,")
        await ben.socket.send("40/a,")
        await until(lambda: adapter.told and len(sio._core.spaces["/a"].rooms) == 2)
        assert adapter.told == [("open", "/a")]  # once for both
        await ada.socket.send("40")
        assert (await ada.recv()).startswith("40{")  # the answer for "/" passes that for "/a"
        adapter.may_open.set()
        assert (await ada.recv()).startswith("40/a,{")
        assert (await ben.recv()).startswith("40/a,{")


async def test_namespace_for_a_client_of_another_instance_is_made_by_its_name_alone() -> None:
    adapter = Opened()
    sio = Server(adapter=adapter, namespaces=("/named",), namespaces_max=1)
    sio.on("e", print, namespace=re.compile("/room-.*"))
    sio.on("e", print, namespace=lambda name, auth, environ: name.startswith("/asked"))
    async with sio:
        ready = sio._core.namespaces.make_ready
        assert [await ready(name) for name in ("/named", "/asked", "/other#", "/room-1")] == [True, False, False, True]
        assert adapter.told == [("open", "/room-1")]
        assert set(sio._core.spaces) == {"/", "/named", "/room-1"}
        assert await ready("/room-2")  # the first one is empty: it makes room
        assert set(sio._core.spaces) == {"/", "/named", "/room-2"}


async def test_client_is_turned_away_while_the_adapter_cannot_open() -> None:
    from flotta.errors import LinkUnavailable

    adapter = Opened()
    adapter.error = LinkUnavailable("redis://nowhere", "connection refused")
    sio = Server(adapter=adapter, namespaces="*")
    async with _clients(sio) as (client,):
        assert await client.refused("/a") == "Namespace unavailable"
        adapter.error = None
        await client.join("/a")


async def test_client_that_leaves_before_the_predicate_has_decided_is_not_let_in() -> None:
    adapter, go = Opened(), asyncio.Event()
    sio = Server(adapter=adapter)

    async def slow(_name: str, _auth: Any, _environ: Any) -> bool:
        await go.wait()
        return True

    came: list[str] = []
    sio.on("connect", lambda namespace, sid: came.append(sid), namespace=slow)
    sio.on("disconnect", lambda namespace, sid: came.remove(sid), namespace=slow)
    async with _clients(sio) as (client,):
        await client.socket.send("40/a,")
        await client.leave("/a")
        await client.socket.send("40")
        assert (await client.recv()).startswith("40{")
        go.set()
        await until(lambda: "/a" not in sio._core.spaces)
        assert came == adapter.told == []
        await client.join("/a")
        assert len(came) == 1


# --- registering ---


async def test_mistakes_in_registering_are_told() -> None:
    sio = Server()
    with pytest.raises(RealtimeError, match="is no namespace"):
        sio.on("e", print, namespace="chat")
    with pytest.raises(RealtimeError, match="is no namespace"):
        sio.on("e", print, namespace=7)  # type: ignore[call-overload]
    with pytest.raises(RealtimeError, match="is no namespace"):
        sio.on("e", print, namespace=Namespace)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="instance of a Namespace"):
        sio.register_namespace(Namespace)  # type: ignore[arg-type]
    with pytest.raises(NotStarted, match="registered with no server"):
        await Namespace("/x").emit("e")
    async with sio:
        with pytest.raises(StateError):
            sio.on("e", print, namespace="/late")
        sio.on("e", print, namespace=re.compile("/late"))  # patterns may come later
        assert sio._core.namespaces.known("/late")


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"cors_allowed_origins": "*"}, "cors_origins"),
        ({"ping_interval": 25}, "ping_interval_s"),
        ({"max_http_buffer_size": 1}, "payload_bytes_max"),
        ({"async_handlers": True}, "handlers_max"),
        ({"always_connect": True}, "follows the confirmation"),
        ({"client_manager": None}, "Redis URL"),
        ({"async_mode": "asgi"}, "leave it out"),
        ({"pingInterval": 25_000}, "ping_interval_s"),
        ({"connectionStateRecovery": {}}, "adapter='streams'"),
        ({"conections_max": 1}, "did you mean connections_max"),
        ({"whatever": 1}, "see ServerOptions"),
        ({"logger": True}, "structlog"),
    ],
)
def test_option_by_a_foreign_name_is_answered_with_ours(given: dict[str, Any], cure: str) -> None:
    with pytest.raises(TypeError, match=re.escape(cure)):
        Server(**given)


# --- middleware ---


async def test_middleware_of_a_connection_runs_in_order_and_the_first_refusal_ends_it() -> None:
    sio, ran = Server(), list[str]()

    @sio.use(namespace="/admin")
    async def token(sid: str, environ: dict[str, Any], auth: Any) -> None:
        ran.append("token")
        if auth != {"token": "secret"}:
            raise ConnectRefused("unknown token", {"code": 3})
        await sio.save_session(sid, {"user": "ada"}, namespace="/admin")

    @sio.use(namespace="*")
    def everywhere(namespace: str, sid: str, environ: dict[str, Any]) -> bool:
        ran.append(f"everywhere {namespace}")
        return "Mozilla" not in environ.get("HTTP_USER_AGENT", "")

    @sio.use(namespace="/admin")
    def after() -> None:
        ran.append("after")

    @sio.on("connect", namespace="/admin")
    async def connect(sid: str) -> None:
        ran.append((await sio.get_session(sid, namespace="/admin"))["user"])

    async with _clients(sio) as (client,):
        assert await client.ask("/admin") == '44/admin,{"message":"unknown token","data":{"code":3}}'
        assert ran == ["everywhere /admin", "token"]
        ran.clear()
        await client.join("/admin", '{"token":"secret"}')
        assert ran == ["everywhere /admin", "token", "after", "ada"]
        assert (await client.ask("")).startswith("40{")
        assert ran[4:] == ["everywhere /"]


async def test_middleware_of_events_surrounds_the_handler_and_may_change_everything() -> None:
    sio, ran = Server(), list[str]()

    @sio.use_event
    async def outer(sid: str, event: str, args: list[Any], go_on: Any) -> Any:
        ran.append(f"outer {event}")
        if event == "forbidden":
            return {"error": "forbidden"}
        result = await go_on()
        ran.append("outer end")
        return result

    @sio.use_event
    async def inner(sid: str, event: str, args: list[Any], go_on: Any) -> Any:
        args[:] = [arg * 2 for arg in args]
        if event == "twice":
            await go_on()
        result = await go_on()
        return result if result is None else {"changed": result}

    @sio.use_event(namespace="*")
    def first(namespace: str, sid: str, event: str, args: list[Any], go_on: Any) -> Any:
        ran.append(f"first {namespace}")
        return go_on()  # an awaitable, so a sync middleware may give it on

    @sio.event
    async def add(sid: str, a: int, b: int) -> int:
        ran.append("add")
        return a + b

    @sio.event
    async def twice(sid: str) -> None: ...

    async with _clients(sio) as (client,):
        assert (await client.ask("")).startswith("40{")
        await client.socket.send('421["add",1,2]')
        assert await client.recv() == '431[{"changed":6}]'
        assert ran == ["first /", "outer add", "add", "outer end"]
        await client.socket.send('422["forbidden",1]')
        assert await client.recv() == '432[{"error":"forbidden"}]'
        # Nobody takes it, and next() twice is a mistake: neither is acknowledged, the connection goes on.
        await client.socket.send('423["unknown",1]')
        await client.socket.send('424["twice"]')
        await client.socket.send('425["add",2,2]')
        assert await client.recv() == '435[{"changed":8}]'
        assert sio.stats.handlers_failed == 1


async def test_event_without_a_handler_is_not_acknowledged() -> None:
    sio = Server()
    sio.on("known", lambda sid: None)
    async with _clients(sio) as (client,):
        assert (await client.ask("")).startswith("40{")
        await client.socket.send('421["unknown"]')
        await client.socket.send('422["known"]')
        assert await client.recv() == "432[]"


# --- classes ---


class Chat(Namespace):
    """Everything that python-socketio's class has."""

    def on_connect(self, sid: str, environ: dict[str, Any]) -> None:
        self.environ = environ

    async def on_enter(self, sid: str, room: str) -> list[str]:
        await self.enter_room(sid, room)
        async with self.session(sid) as session:
            session["room"] = room
        return self.rooms(sid)

    async def on_say(self, sid: str, text: str) -> None:
        room = (await self.get_session(sid))["room"]
        await self.emit("said", text, room=room, skip_sid=sid)
        await self.send(text, room=room, skip_sid=sid)

    async def on_ask(self, sid: str, other: str) -> Any:
        return await self.call("question", to=other, timeout_s=5)

    async def on_end(self, sid: str, other: str) -> None:
        await self.save_session(other, {"ended": True})
        await self.leave_room(other, "r")
        await self.close_room("r")
        await self.disconnect(other)

    async def catch_all(self, event: str, sid: str, *data: Any) -> tuple[Any, ...]:
        return (event, *data)


async def test_class_has_the_methods_of_the_server_for_its_namespace() -> None:
    sio, chat = Server(), Chat("/chat")
    sio.register_namespace(chat)
    sio.on("taken", lambda sid: "by a function", namespace="/chat")
    Chat.on_taken = lambda self, sid: "by the class"  # type: ignore[attr-defined]
    try:
        sio.register_namespace(chat)
    finally:
        del Chat.on_taken  # type: ignore[attr-defined]
    async with _clients(sio, 2) as (ada, ben):
        sid = await ada.join("/chat")
        other = await ben.join("/chat")
        assert chat.environ["PATH_INFO"] == "/socket.io/"
        assert chat.server is sio
        for client, its in ((ada, sid), (ben, other)):
            assert (await client.call("/chat", "enter", "r"))[0] == sorted([its, "r"])
        await ada.socket.send('42/chat,["say","hi"]')
        assert await ben.recv() == '42/chat,["said","hi"]'
        assert await ben.recv() == '42/chat,["message","hi"]'
        assert await ada.call("/chat", "unknown", 1) == ["unknown", 1]
        assert await ada.call("/chat", "taken") == ["by a function"]
        await ada.socket.send(f'42/chat,9["ask","{other}"]')
        assert await ben.recv() == '42/chat,1["question"]'
        await ben.socket.send('43/chat,1["answer"]')
        assert await ada.recv() == '43/chat,9["answer"]'
        assert await ada.call("/chat", "end", other) == []
        assert await ben.recv() == "41/chat,"


async def test_overridden_trigger_event_gets_everything_and_may_go_on() -> None:
    class Traced(Namespace):
        def __init__(self, namespace: str) -> None:
            super().__init__(namespace)
            self.seen: list[tuple[Any, ...]] = []

        async def trigger_event(self, event: str, *args: Any) -> Any:
            self.seen.append((event, *args))
            return await super().trigger_event(event, *args)

        async def on_add(self, sid: str, a: int, b: int) -> int:
            return a + b

        def on_disconnect(self, sid: str) -> None:
            self.seen.append(("bye", sid))

    sio, traced = Server(), Traced("/traced")
    sio.register_namespace(traced)
    async with _clients(sio) as (client,):
        sid = await client.join("/traced", '{"a":1}')
        assert await client.call("/traced", "add", 1, 2) == [3]
        await client.leave("/traced")
        await until(lambda: len(traced.seen) == 5)
    assert [seen[0] for seen in traced.seen] == ["connect", "add", "disconnecting", "disconnect", "bye"]
    assert traced.seen[0][1:2] == (sid,)
    assert traced.seen[0][3] == {"a": 1}
    assert traced.seen[3] == ("disconnect", sid, "client namespace disconnect")


async def test_class_for_many_namespaces_must_say_which() -> None:
    class Any_(Namespace):  # noqa: N801
        async def on_where(self, namespace: str, sid: str) -> str:
            with pytest.raises(RealtimeError, match="say which"):
                await self.emit("e")
            await self.emit("here", namespace=namespace)
            return namespace

    sio = Server()
    sio.register_namespace(Any_("*"))
    async with _clients(sio) as (client,):
        await client.join("/x")
        await client.socket.send('42/x,1["where"]')
        assert await client.recv() == '42/x,["here"]'
        assert await client.recv() == '43/x,1["/x"]'


# --- the end of a socket ---


async def test_last_handlers_find_the_session_and_the_rooms_in_order() -> None:
    sio, told, slow = Server(), list[Any](), asyncio.Event()

    @sio.event
    async def connect(sid: str) -> None:
        await sio.save_session(sid, {"user": "ada"})
        await sio.enter_room(sid, "harbour")

    @sio.event
    async def work(sid: str) -> None:
        await slow.wait()
        told.append("work")

    @sio.event
    async def disconnecting(sid: str, reason: str) -> None:
        await asyncio.sleep(0)
        told.append(("disconnecting", reason, "harbour" in sio.rooms(sid)))

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        environ = sio.get_environ(sid)
        assert environ is not None
        session = await sio.get_session(sid)
        told.append(("disconnect", reason, session, sio.rooms(sid) == sorted([sid, "harbour"]), sio.is_connected(sid)))

    async with _clients(sio) as (client,):
        answer = await client.ask("")
        sid = json.loads(answer[2:])["sid"]
        await client.socket.send('42["work"]')
        await client.socket.send("41")
        await until(lambda: not sio.is_connected(sid))
        await sio.emit("to nobody", room="harbour")
        slow.set()
        await until(lambda: len(told) == 3)
        reason = "client namespace disconnect"
        assert told == ["work", ("disconnecting", reason, True), ("disconnect", reason, {"user": "ada"}, True, False)]
        await until(lambda: not sio._core.spaces["/"].leaving)
        assert await sio.get_session(sid) == {}
        assert sio.rooms(sid) == []
        assert sio.stats.handlers_running == 0


async def test_client_that_goes_while_its_connect_handler_runs_is_known_in_disconnect() -> None:
    sio, go, told = Server(), asyncio.Event(), list[Any]()

    @sio.event
    async def connect(sid: str) -> None:
        await sio.save_session(sid, {"user": "ada"})
        await go.wait()

    @sio.event
    async def disconnect(sid: str, reason: str) -> None:
        told.append((reason, await sio.get_session(sid)))

    async with _clients(sio) as (client,):
        await _come_and_go(sio, client)
        go.set()
        await until(lambda: told)
        assert told == [("client namespace disconnect", {"user": "ada"})]
        await until(lambda: not sio._core.spaces["/"].leaving)


async def test_client_that_goes_while_middleware_decides_is_told_of_to_nobody() -> None:
    sio, go, told = Server(), asyncio.Event(), list[str]()

    @sio.use
    async def slow(sid: str) -> None:
        await go.wait()

    @sio.use
    def next_one(sid: str) -> None:
        told.append("next")

    @sio.event
    def connect(sid: str) -> None:
        told.append("connect")

    @sio.event
    def disconnect(sid: str) -> None:
        told.append("disconnect")

    async with _clients(sio) as (client,):
        await _come_and_go(sio, client)
        go.set()
        await until(lambda: not sio.stats.handlers_running)
        assert told == []
        assert not sio._core.spaces["/"].leaving


# --- names of python-socketio ---


async def test_background_tasks_sleep_transport_and_shutdown() -> None:
    sio = Server()
    ended = asyncio.Event()

    async def endless(word: str, *, more: str) -> None:
        try:
            assert (word, more) == ("a", "b")
            await sio.sleep(3600)
        finally:
            ended.set()

    async def give(value: int) -> int:
        await sio.sleep()
        return value

    async with _clients(sio) as (client,):
        answer = await client.ask("")
        sid = json.loads(answer[2:])["sid"]
        assert sio.transport(sid) == "websocket"
        assert sio.transport("nobody") is None
        sio.start_background_task(endless, "a", more="b")
        assert await sio.start_background_task(give, 7) == 7
        assert sio.stats.handlers_running == 0  # a drain does not wait for them
        await sio.shutdown()
        assert ended.is_set()
