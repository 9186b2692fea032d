"""Map operations that either language runs, with replies in a form that both share.

Used by the tests against the real peer, by the recorder of vectors and by the tests that replay them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from flotta.errors import CommandError, NotAnInteger
from flotta.rmap import Map
from interop.peer import GoPeer, PeerError

__all__ = ["EVERY_OPERATION", "PYTHON", "Call", "Recorder", "by_go", "by_python"]


@dataclass
class Call:
    """One operation, for either side."""

    op: str
    key: str = "k"
    value: str = ""
    test: str = ""
    delta: int = 0
    items: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


def failed(error: Exception) -> str:
    """Both sides fail for the same reason; the words differ around it."""
    text = error.__cause__.text if isinstance(error, NotAnInteger) else str(error)  # type: ignore[union-attr]
    for reason in ("not an integer", "overflow", "excessively sparse"):
        if reason in text:
            return f"error: {reason}"
    raise error


async def by_python(joined: Map[str], call: Call) -> Any:
    """Run it here; the reply in a form that both sides share."""
    try:
        return await PYTHON[call.op](joined, call)
    except (CommandError, NotAnInteger) as error:
        return failed(error)


PYTHON: dict[str, Callable[[Map[str], Call], Awaitable[Any]]] = {
    "set": lambda m, c: m.set(c.key, c.value),
    "set_and_wait": lambda m, c: _or_none(m.set_and_wait(c.key, c.value)),
    "set_if_absent": lambda m, c: m.set_if_absent(c.key, c.value),
    "test_and_set": lambda m, c: _attempt(m.test_and_set(c.key, c.test, c.value)),
    "incr": lambda m, c: m.incr(c.key, c.delta),
    "append_values": lambda m, c: m.append_values(c.key, *c.items),
    "append_unique_values": lambda m, c: m.append_unique_values(c.key, *c.items),
    "remove_values": lambda m, c: _removal(m.remove_values(c.key, *c.items)),
    "delete": lambda m, c: m.delete(c.key),
    "test_and_delete": lambda m, c: _attempt(m.test_and_delete(c.key, c.test)),
    "reset": lambda m, c: m.reset(),
    "destroy": lambda m, c: m.destroy(),
    "test_and_reset": lambda m, c: m.test_and_reset(dict(c.pairs)),
}


async def _or_none(writing: Awaitable[str | None]) -> str | None:
    return await writing or None  # Go's SetAndWait does not tell an empty value from none


async def _attempt(writing: Awaitable[Any]) -> tuple[bool, str | None]:
    attempt = await writing
    return attempt.done, attempt.previous


async def _removal(writing: Awaitable[Any]) -> tuple[bool, list[str]]:
    removal = await writing
    return removal.removed, removal.values


async def by_go(peer: GoPeer, handle: str, call: Call) -> Any:
    """Run it in Go; the reply in the shared form."""
    pairs = dict(call.pairs)
    try:
        reply = await peer.call(
            f"map.{call.op}", handle=handle, key=call.key, value=call.value, test=call.test, delta=call.delta,
            items=list(call.items), keys=list(pairs), tests=list(pairs.values()),
        )  # fmt: skip
    except PeerError as error:
        return failed(error)
    if call.op in ("set", "delete"):
        return reply["previous"] if reply["existed"] else None
    if call.op == "set_and_wait":
        return reply["previous"] or None
    if call.op in ("test_and_set", "test_and_delete"):
        done = reply.get("updated", reply.get("deleted"))
        return done, reply["previous"] if reply["existed"] else None
    if call.op == "remove_values":
        return reply["removed"], reply["values"] or []
    if call.op in ("append_values", "append_unique_values"):
        return reply or []
    return reply


class Recorder:
    """Every message of a channel, as bytes."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def on_message(self, channel: bytes, payload: bytes) -> None:
        self.messages.append(payload)

    def on_lost(self) -> None:
        raise AssertionError("the subscription must not be lost here")

    def on_restored(self) -> None:
        raise AssertionError("the subscription must not be lost here")


EVERY_OPERATION = [
    Call("set", "a", "1"),
    Call("set", "a", "two words, ü"),
    Call("set_and_wait", "b", "x"),
    Call("set_if_absent", "b", "y"),
    Call("set_if_absent", "c", ""),
    Call("test_and_set", "c", "no", "wrong"),
    Call("test_and_set", "c", "yes", ""),
    Call("test_and_set", "missing", "yes", ""),
    Call("incr", "n", delta=5),
    Call("incr", "n", delta=-7),
    Call("incr", "a", delta=1),
    Call("incr", "n", delta=-(2**63)),
    Call("append_values", "l", items=("x", "a,b", 'q"/\\', "ü")),
    Call("append_values", "l", items=()),
    Call("append_values", "none", items=()),
    Call("append_values", "b", items=("z",)),
    Call("append_unique_values", "l", items=("x", "new", "new")),
    Call("append_unique_values", "l", items=("x",)),
    Call("append_unique_values", "u", items=("1", "1")),
    Call("remove_values", "l", items=("x", "absent")),
    Call("remove_values", "l", items=("absent",)),
    Call("remove_values", "none", items=("x",)),
    Call("remove_values", "u", items=("1",)),
    Call("set", "commas", "p,q,p"),
    Call("append_values", "commas", items=("r",)),
    Call("set", "commas", "p,q,p"),
    Call("remove_values", "commas", items=("p",)),
    Call("delete", "a"),
    Call("delete", "a"),
    Call("test_and_delete", "c", test="no"),
    Call("test_and_delete", "c", test="yes"),
    Call("test_and_delete", "c", test="yes"),
    Call("test_and_reset", pairs=(("b", "no"),)),
    Call("test_and_reset", pairs=(("n", "-2"), ("l", "no"))),
    Call("reset"),
    Call("set", "a", "1"),
    Call("set", "b", "2"),
    Call("test_and_reset", pairs=(("a", "1"), ("b", "2"))),
    Call("set", "after", "reset"),
    Call("destroy"),
    Call("set", "after", "destroy"),
]
