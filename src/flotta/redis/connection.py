"""One socket, from greeting to end: commands out in order, replies matched in order.

Owns: the reply reader, the queue of entries whose replies are due, and the facts a watchdog needs (when the oldest was
written, when something last arrived). Invariants: one entry per reply, in the order written; an entry of a caller who
has gone stays in its place and swallows its reply; after ``end`` every entry has failed and nothing is sent any more.
It never reconnects and knows no callers' limits: that is the link's.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Container
from typing import Any, Protocol, cast, final

import hiredis

from flotta.errors import AmbiguousOutcome, CommandError
from flotta.redis.effects import outcome_of

__all__ = ["NOBODY", "Arg", "Batch", "Connection", "Entry", "shown"]

Arg = bytes | str | int | float | memoryview

_NOTHING: Any = object()
_CONFIRMATIONS = frozenset(
    (b"subscribe", b"unsubscribe", b"psubscribe", b"punsubscribe", b"ssubscribe", b"sunsubscribe")
)
_WRITE_BUFFER_BYTES_MAX = 1 << 20
# Seconds idle, seconds between probes, probes. Where the system lacks one, its own default holds.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPALIVE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Entry(Protocol):
    """Where a reply goes: an ``asyncio.Future``, or a ``Batch`` that stands once for each of its commands."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


@final
class Batch:
    """Collects the replies of commands written as one; error replies stay in place among them."""

    __slots__ = ("_due", "future", "replies")

    def __init__(self, future: asyncio.Future[list[Any]], due: int) -> None:
        self.future = future
        self._due = due
        self.replies: list[Any] = []

    def done(self) -> bool:
        """Whether somebody still waits for it."""
        return self.future.done()

    def set_result(self, reply: Any, /) -> None:
        """Take the next reply, an error reply too; the last one wakes the caller."""
        self.replies.append(reply)
        if len(self.replies) == self._due:
            self.future.set_result(self.replies)

    def set_exception(self, exception: Exception, /) -> None:
        """The connection is gone: one failure for the whole batch."""
        self.future.set_exception(exception)


@final
class _Nobody:
    """The entry of a heartbeat: nobody waits for its reply."""

    def done(self) -> bool:
        return True

    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


NOBODY = _Nobody()


def error_reply(text: str) -> CommandError:
    """An error reply as its exception. Here it counts as one inside EXEC; ``_fail`` knows better about all others."""
    return CommandError(text, outcome=outcome_of(text, "EXEC"))


@final
class Connection(asyncio.Protocol):
    """The protocol object of one socket. ``on_end(reason)`` is called exactly once if it was ever connected."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_end: Callable[[Connection, str], None],
        on_room: Callable[[], None],
        on_push: Callable[[list[Any]], None],
    ) -> None:
        self._now = loop.time
        self._on_end = on_end
        self._on_room = on_room
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=error_reply, notEnoughData=_NOTHING)
        self._entries: deque[Entry] = deque()
        self._names: deque[Arg] = deque()
        self._written: deque[tuple[int, float]] = deque()
        self._sent = 0
        self.writable = True
        self.wants_room = False
        self.ended: str | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard_at_s = self._now()

    # --- what the link asks -------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Commands whose replies are due."""
        return len(self._entries)

    def awaited(self) -> set[asyncio.Future[Any]]:
        """The futures behind the replies that are due and that somebody still waits for."""
        futures = (entry.future if isinstance(entry, Batch) else entry for entry in self._entries if not entry.done())
        return {future for future in futures if isinstance(future, asyncio.Future)}

    @property
    def oldest_written_s(self) -> float | None:
        """When the command whose reply is due next was written (loop time), None if none is due."""
        answered = self._sent - len(self._entries)
        while self._written and self._written[0][0] <= answered:
            self._written.popleft()
        return self._written[0][1] if self._written else None

    def send(self, packed: list[bytes], entries: list[Any], names: list[Arg]) -> None:
        """Write ``packed`` at once, as one piece; the reply of each goes to its entry."""
        assert self._transport is not None
        self._entries.extend(entries)
        self._names.extend(names)
        self._sent += len(entries)
        self._written.append((self._sent, self._now()))
        data = packed[0] if len(packed) == 1 else b"".join(packed)
        self.bytes_sent += len(data)
        self._transport.write(data)

    def expire(self, written_before_s: float, waited_s: float, *, spared: Container[Entry]) -> None:
        """Fail the callers of what was written before then and is not ``spared``; replies that come are swallowed."""
        answered = overdue_end = self._sent - len(self._entries)
        for end, written_s in self._written:
            if written_s > written_before_s:
                break
            overdue_end = end
        count = overdue_end - answered
        for _, entry, name in zip(range(count), self._entries, self._names, strict=False):
            if not entry.done() and entry not in spared:
                entry.set_exception(AmbiguousOutcome(f"no reply within {waited_s:g} s", command=shown(name)))

    def end(self, reason: str) -> None:
        """Close the socket at once and fail everything that is due. Later calls do nothing."""
        if self.ended is not None:
            return
        self.ended = reason
        self.writable = False
        if self._transport is not None:
            self._transport.abort()
        entries, names = self._entries, self._names
        self._entries, self._names = deque(), deque()
        for entry, name in zip(entries, names, strict=True):
            if not entry.done():
                entry.set_exception(AmbiguousOutcome(reason, command=shown(name)))
        self._on_end(self, reason)

    # --- what the event loop tells ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open (with TLS: and trusted)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES_MAX)
        _keep_alive(self._transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Match every complete reply to its entry."""
        self.heard_at_s = self._now()
        self.bytes_received += len(data)
        entries, names, gets = self._entries, self._names, self._reader.gets
        reply: Any = None
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _NOTHING:
                kind = reply.__class__
                if kind is hiredis.PushNotification:
                    if reply[0] in _CONFIRMATIONS:
                        self._confirm(reply)
                    self._on_push(reply)
                    continue
                entry = entries.popleft()
                name = names.popleft()
                if entry.done():
                    continue
                if kind is CommandError:
                    _fail(entry, name, reply)
                else:
                    entry.set_result(reply)
        except hiredis.ProtocolError as error:
            self.end(f"the peer does not speak RESP: {error}")
        except IndexError:
            self.end("a reply that nobody asked for")
        if self.wants_room:
            self._on_room()

    def pause_writing(self) -> None:
        """More than 1 MiB waits in the transport: what follows stays with the link, unwritten."""
        self.writable = False

    def resume_writing(self) -> None:
        """The peer has taken most of it."""
        self.writable = self.ended is None
        self._on_room()

    def eof_received(self) -> None:
        """The server has closed: nothing more will be answered."""
        self.end("closed by the server")

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.end(f"connection lost: {exc}" if exc else "connection closed")

    def _confirm(self, push: list[Any]) -> None:
        # With RESP3 the answer to SUBSCRIBE and its kin is a push, in the place of the reply.
        if self._names and _command(self._names[0]) == push[0]:
            self._names.popleft()
            entry = self._entries.popleft()
            if not entry.done():
                entry.set_result(push)


def _fail(entry: Entry, name: Arg, error: CommandError) -> None:
    error.command = shown(name)
    error.outcome = outcome_of(error.text, error.command)
    error.args = (f"{error.command}: {error.text}",)
    if entry.__class__ is Batch:
        entry.set_result(error)
    else:
        entry.set_exception(error)


def _keep_alive(sock: Any) -> None:
    """Let the kernel notice a dead machine within a minute, also under a command that may block for ever."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _command(name: Arg) -> bytes:
    return name.lower() if isinstance(name, bytes) else str(name).lower().encode()


def shown(name: Arg) -> str:
    """A command's name for people."""
    return bytes(name).decode("utf-8", "replace") if isinstance(name, bytes | memoryview) else str(name)
