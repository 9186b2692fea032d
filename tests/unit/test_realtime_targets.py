"""What servers and emitters make of the arguments of a call."""

from __future__ import annotations

from typing import Any

import pytest

from flotta.realtime import Server, SyncEmitter
from flotta.realtime.targets import args_of, server_event


@pytest.mark.parametrize(
    ("data", "args"), [(None, []), ((), []), (1, [1]), ((1,), [1]), ((1, None), [1, None]), ([1, 2], [[1, 2]])]
)
def test_a_tuple_is_several_arguments_and_none_is_none(data: Any, args: list[Any]) -> None:
    assert args_of(data) == args


def test_a_server_event_is_its_name_and_what_it_carries() -> None:
    assert server_event("told", (1, b"x")) == ["told", 1, b"x"]
    assert server_event("connected", ()) == ["connected"]


@pytest.mark.parametrize("event", ["connect", "connection", "new_namespace"])
async def test_events_that_node_servers_tell_themselves_are_refused_by_servers_and_emitters(event: str) -> None:
    async with Server() as sio:
        for call in (sio.server_side_emit, sio.server_side_call):
            with pytest.raises(ValueError, match=f"'{event}' is an event of Node's servers themselves"):
                await call(event)
    with SyncEmitter("redis://127.0.0.1:1") as emitter, pytest.raises(ValueError, match=f"'{event}' is an event"):
        emitter.server_side_emit(event)
