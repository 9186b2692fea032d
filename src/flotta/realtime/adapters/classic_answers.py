"""What a server does when another one asks it over the classic adapter's request channel.

Whoever asks counts on an answer from every server: each request that wants one gets one, empty or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from flotta.realtime.adapters import Command, Node, Target, obey
from flotta.realtime.adapters.classic_wire import (
    COMMANDS,
    Request,
    RequestType,
    read_event,
    read_question,
    write_ack,
    write_response,
)
from flotta.realtime.adapters.wire import read_rooms, socket_fields, unsendable_is_junk

__all__ = ["Reply", "answer"]

Reply: TypeAlias = Callable[[bytes], Any]
"""Gives an answer to who asked."""


def answer(node: Node, request: Request, reply: Reply) -> None:
    """Do what another server asks, and answer if it wants that. Raises WireError for junk."""
    if (command := COMMANDS.get(request.type)) is not None:
        _obey(node, command, request, reply)
    elif request.type is RequestType.SERVER_SIDE_EMIT:
        _serve(node, request, reply)
    elif request.type is RequestType.BROADCAST:
        _ask(node, request, reply)
    elif request.type in _FACTS and request.id is not None:
        reply(write_response(request.id, **_FACTS[request.type](node, request.target)))


_FACTS: dict[RequestType, Callable[[Node, Target], dict[str, Any]]] = {
    RequestType.SOCKETS: lambda node, target: {"sockets": [facts.sid for facts in node.sockets(target)]},
    RequestType.ALL_ROOMS: lambda node, target: {"rooms": node.rooms(target.namespace)},
    RequestType.REMOTE_FETCH: lambda node, target: {"sockets": list(map(socket_fields, node.sockets(target)))},
}


def _obey(node: Node, command: Command, request: Request, reply: Reply) -> None:
    """Join, leave or disconnect. Only the form for one socket (of older servers) wants an answer, from its holder."""
    target, fields = request.target, request.fields
    one = not fields.get("opts")
    if one:
        target = Target(target.namespace, read_rooms([fields.get("sid", "")]))
    held = one and request.id is not None and bool(node.sockets(target))
    names = () if command is Command.DISCONNECT else read_rooms(fields.get("rooms") or [fields.get("room")])
    obey(node, command, target, names, close=bool(fields.get("close")))
    if held and request.id is not None:
        reply(write_response(request.id))


def _serve(node: Node, request: Request, reply: Reply) -> None:
    """An event for this server; with an id its handler's result is the answer, once. One that cannot travel is none,
    and raises TypeError or ValueError to whom it came from."""
    args, request_id = read_event(request), request.id
    if request_id is None:
        node.server_side(request.target.namespace, args, None)
        return
    answered = False

    def answer_once(value: Any) -> None:
        nonlocal answered
        if answered:
            return
        answered, kind = True, int(RequestType.SERVER_SIDE_EMIT)
        try:
            payload = write_response(request_id, type=kind, data=value)
        except (TypeError, ValueError):
            reply(write_response(request_id, type=kind, data=None))
            raise
        reply(payload)

    node.server_side(request.target.namespace, args, answer_once)


def _ask(node: Node, request: Request, reply: Reply) -> None:
    """A broadcast with acknowledgements: first how many clients were asked, then the answer of each, or that there will
    be none."""
    request_id = request.id
    if request_id is None:
        return
    args, timeout_s, tell_gone = read_question(request)

    def on_ack(found: list[Any]) -> None:
        reply(write_ack(request_id, found))

    def on_gone() -> None:  # who leaves at once leaves behind the count
        gone = write_response(request_id, type=int(RequestType.BROADCAST_GONE))
        asyncio.get_running_loop().call_soon(reply, gone)

    with unsendable_is_junk():
        count = node.ask(request.target, args, on_ack, timeout_s, on_gone if tell_gone else None)
    reply(write_response(request_id, type=int(RequestType.BROADCAST_CLIENT_COUNT), clientCount=count))
