"""What a call means, and whom: the arguments that servers and emitters share. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from flotta.realtime.adapters import Target
from flotta.realtime.rooms import user_room
from flotta.realtime.socketio.packet import RESERVED_EVENTS

__all__ = ["Names", "args_of", "client_event", "name_of", "names_of", "server_event", "target_of", "value_of"]

Names: TypeAlias = str | Iterable[str] | None
"""One name, several, or none."""

RESERVED_SERVER_EVENTS: Final = frozenset({"connect", "connection", "new_namespace"})
"""What Node's servers tell themselves; from elsewhere they would take it for the truth."""


def names_of(*given: Names) -> tuple[str, ...]:
    """Every name in ``given``, in order. Raises TypeError for what is no text."""
    names: list[str] = []
    for one in given:
        if isinstance(one, str):
            names.append(one)
        elif one is not None:
            names.extend(_checked(one))
    return tuple(names)


def name_of(given: str) -> str:
    """``given``. A number would be a room in which nobody is: users of a database have such ids. Raises TypeError."""
    if not isinstance(given, str):
        raise TypeError(f"{given!r} names no room, user or session id: names are text, such as str({given!r})")
    return given


def _checked(given: Any) -> list[str]:
    """Several names."""
    return [name_of(name) for name in (given if isinstance(given, Iterable) else [given])]


def target_of(namespace: str, to: Names, room: Names, user: Names, skip_sid: Names) -> Target | None:
    """Whom the arguments of an API call mean. None: nobody; an empty list of targets is nobody, not everybody."""
    rooms = (*names_of(to, room), *map(user_room, names_of(user)))
    if not rooms and not (to is None and room is None and user is None):
        return None
    return Target(namespace, rooms, names_of(skip_sid))


def args_of(data: Any) -> list[Any]:
    """The arguments of an event or of an acknowledgement: a tuple is several, None is none, anything else is one."""
    if data is None:
        return []
    return list(data) if isinstance(data, tuple) else [data]


def value_of(args: list[Any]) -> Any:
    """The reverse: what one acknowledgement says."""
    return args[0] if len(args) == 1 else (tuple(args) or None)


def client_event(event: str, data: Any) -> list[Any]:
    """An event for clients, its name first. Raises ValueError for Socket.IO's own, at which official clients end their
    connection, and TypeError for a name that is no text."""
    _check_name(event)
    if event in RESERVED_EVENTS:
        raise ValueError(f"{event!r} is an event of Socket.IO itself: give yours another name")
    return [event, *args_of(data)]


def server_event(event: str, args: Iterable[Any]) -> list[Any]:
    """An event for servers, its name first. Raises ValueError for one that Node's servers keep for themselves, and
    TypeError for a name that is no text."""
    _check_name(event)
    if event in RESERVED_SERVER_EVENTS:
        raise ValueError(f"{event!r} is an event of Node's servers themselves")
    return [event, *args]


def _check_name(event: object) -> None:
    """Other servers drop a broadcast without a name as junk, so what emits it must hear of it."""
    if not isinstance(event, str):
        raise TypeError(f"{event!r} is no name of an event: names are text, such as {str(event)!r}")
