"""What servers and emitters make of the arguments of a call."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from flotta.realtime import EmitterOptions, Server, SyncEmitter
from flotta.realtime.adapters import Command, Target
from flotta.realtime.emitter.commands import Words
from flotta.realtime.targets import args_of, client_event, server_event


@pytest.mark.parametrize(
    ("data", "args"), [(None, []), ((), []), (1, [1]), ((1,), [1]), ((1, None), [1, None]), ([1, 2], [[1, 2]])]
)
def test_a_tuple_is_several_arguments_and_none_is_none(data: Any, args: list[Any]) -> None:
    assert args_of(data) == args


def test_a_server_event_is_its_name_and_what_it_carries() -> None:
    assert server_event("told", (1, b"x")) == ["told", 1, b"x"]
    assert server_event("connected", ()) == ["connected"]


@pytest.mark.parametrize("event", ["connect", "connect_error", "disconnect", "disconnecting", "newListener"])
async def test_events_that_would_end_every_clients_connection_are_refused_by_servers_and_emitters(event: str) -> None:
    async with Server() as sio:
        for call in (sio.emit, sio.call_all, partial(sio.call, to="nobody"), partial(sio.emit, callback=print, to="x")):
            with pytest.raises(ValueError, match=f"'{event}' is an event of Socket.IO itself"):
                await call(event, 1)
    with SyncEmitter("redis://127.0.0.1:1") as emitter, pytest.raises(ValueError, match=f"'{event}' is an event of"):
        emitter.emit(event, 1)
    assert client_event("connected", (1, b"x")) == ["connected", 1, b"x"]


@pytest.mark.parametrize("event", [5, b"told", None, ["told"]])
def test_a_name_that_is_no_text_is_refused_before_other_servers_drop_it(event: Any) -> None:
    for make in (client_event, server_event):
        with pytest.raises(TypeError, match="is no name of an event: names are text"):
            make(event, ())


@pytest.mark.parametrize("event", ["connect", "connection", "new_namespace"])
async def test_events_that_node_servers_tell_themselves_are_refused_by_servers_and_emitters(event: str) -> None:
    async with Server() as sio:
        for call in (sio.server_side_emit, sio.server_side_call):
            with pytest.raises(ValueError, match=f"'{event}' is an event of Node's servers themselves"):
                await call(event)
    with SyncEmitter("redis://127.0.0.1:1") as emitter, pytest.raises(ValueError, match=f"'{event}' is an event"):
        emitter.server_side_emit(event)


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
def test_an_emitter_has_words_for_whom_a_call_means_and_none_for_nobody(adapter: Any) -> None:
    words = Words(EmitterOptions(adapter=adapter), namespace="/shop")
    for namespace, meant in ((None, "/shop"), ("/other", "/other")):
        target = words.whom(namespace, "sid", ["a", "b"], "ada", ["not", "these"])
        assert target == Target(meant, ("sid", "a", "b", "user:ada"), ("not", "these"))
        assert words.emit(target, "e", 1, volatile=False, may_see=None)
        assert words.command(Command.JOIN, target, "room")
    nobody = words.whom(None, [], None, None, None)
    assert nobody is None
    assert words.emit(nobody, "e", 1, volatile=False, may_see=None) is None
    assert words.command(Command.DISCONNECT, nobody) is None
