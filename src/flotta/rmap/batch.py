"""The sets of one turn of the loop leave as one script.

Owns the order and the answers. Invariants: each set stays a write of its own, with its own revision and message, in the
order of the calls; a batch leaves when it holds ``SETS_MAX`` sets or ``BYTES_MAX`` bytes; what goes wrong with the
script is told to every caller of it; the copy is offered the sets before their callers run.

Why: most of the time that a write costs the server is the price of a script. Callers of one turn pay it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, final

from flotta.errors import CommandError, FlottaError

__all__ = ["BYTES_MAX", "SETS_MAX", "SetBatch"]

SETS_MAX = 128
"""Sets in one script at most: it holds the server for less than half a millisecond then."""
BYTES_MAX = 256 * 1024
"""A batch that holds so many bytes of values leaves: a script of many large ones would hold the server, and past its
client-query-buffer-limit the connection."""

Reply = asyncio.Future[tuple[bytes | None, int]]
"""Previous value and revision of one set."""
Sending = asyncio.Future[list[Any]]


class _Sets:
    """What one script carries: keys as the copy knows them, then keys and values as they travel, in turn."""

    __slots__ = ("args", "keys", "replies", "size_bytes")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.args: list[bytes] = []
        self.replies: list[Reply] = []
        self.size_bytes = 0


@final
class SetBatch:
    """Collects sets and sends them. ``send_many(args)`` runs the script by its digest, ``load_and_run(args)`` with its
    source where the server does not know it. ``on_written(first, keys, values)`` hears of sets that are done, and the
    revision of the first."""

    __slots__ = ("_load_and_run", "_loading", "_on_written", "_send_many", "_sets")

    def __init__(
        self,
        send_many: Callable[[list[bytes]], Sending],
        load_and_run: Callable[[list[bytes]], Coroutine[Any, Any, list[Any]]],
        on_written: Callable[[int, list[str], list[bytes]], None],
    ) -> None:
        self._send_many = send_many
        self._load_and_run = load_and_run
        self._on_written = on_written
        self._sets = _Sets()
        self._loading: set[asyncio.Task[list[Any]]] = set()

    def add(self, key: str, raw_key: bytes, value: bytes) -> Reply:
        """A set that leaves at the end of this turn. Cancelling its reply is harmless; it may still happen."""
        loop = asyncio.get_running_loop()
        reply: Reply = loop.create_future()
        sets = self._sets
        if not sets.keys:
            loop.call_soon(self.send)
        sets.keys.append(key)
        sets.args += (raw_key, value)
        sets.replies.append(reply)
        sets.size_bytes += len(value)
        if len(sets.keys) >= SETS_MAX or sets.size_bytes >= BYTES_MAX:
            self.send()
        return reply

    def send(self) -> None:
        """Send what is collected, now."""
        if not self._sets.keys:
            return
        sets, self._sets = self._sets, _Sets()
        try:
            sending = self._send_many(sets.args)
        except FlottaError as error:
            _refuse(sets.replies, error)
            return
        sending.add_done_callback(lambda done: self._take(done, sets))

    def _take(self, done: Sending, sets: _Sets) -> None:
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, CommandError) or error.code != "NOSCRIPT":
            self._answer(done, sets)
            return
        again = asyncio.get_running_loop().create_task(self._load_and_run(sets.args), name="flotta-map load script")
        self._loading.add(again)
        again.add_done_callback(self._loading.discard)
        again.add_done_callback(lambda late: self._answer(late, sets))

    def _answer(self, done: Sending, sets: _Sets) -> None:
        if done.cancelled():
            for reply in sets.replies:
                reply.cancel()
            return
        error = done.exception()
        if error is not None:
            _refuse(sets.replies, error)
            return
        last, *previous = done.result()
        first = int(last) - len(sets.keys) + 1
        self._on_written(first, sets.keys, sets.args[1::2])
        for number, reply in enumerate(sets.replies):
            if not reply.done():
                reply.set_result((previous[number], first + number))


def _refuse(replies: list[Reply], error: BaseException) -> None:
    for reply in replies:
        if not reply.done():
            reply.set_exception(error)
