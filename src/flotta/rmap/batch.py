"""The sets of one turn of the loop leave as one script.

Owns the order and the answers. Invariants: each set stays a write of its own, with its own revision and message, in the
order of the calls; a batch holds at most ``SETS_MAX``; what goes wrong with the script is told to every caller of it.

Why: most of the time that a write costs the server is the price of a script. Callers of one turn pay it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, final

from flotta.errors import CommandError, FlottaError

__all__ = ["SETS_MAX", "SetBatch"]

SETS_MAX = 128
"""Sets in one script at most: it holds the server for less than half a millisecond then."""

Reply = asyncio.Future[tuple[bytes | None, int]]
"""Previous value and revision of one set."""


@final
class SetBatch:
    """Collects sets and sends them. ``send_many(args)`` runs the script by its digest, ``load_and_run(args)`` with its
    source where the server does not know it."""

    __slots__ = ("_load_and_run", "_loading", "_send_many", "_sets")

    def __init__(
        self,
        send_many: Callable[[list[bytes]], asyncio.Future[list[Any]]],
        load_and_run: Callable[[list[bytes]], Coroutine[Any, Any, list[Any]]],
    ) -> None:
        self._send_many = send_many
        self._load_and_run = load_and_run
        self._sets: list[tuple[bytes, bytes, Reply]] = []
        self._loading: set[asyncio.Task[list[Any]]] = set()

    def add(self, key: bytes, value: bytes) -> Reply:
        """A set that leaves at the end of this turn. Cancelling its reply is harmless; it may still happen."""
        loop = asyncio.get_running_loop()
        reply: Reply = loop.create_future()
        if not self._sets:
            loop.call_soon(self.send)
        self._sets.append((key, value, reply))
        if len(self._sets) >= SETS_MAX:
            self.send()
        return reply

    def send(self) -> None:
        """Send what is collected, now."""
        if not self._sets:
            return
        sets, self._sets = self._sets, []
        replies = [reply for _, _, reply in sets]
        args = [part for key, value, _ in sets for part in (key, value)]
        try:
            sending = self._send_many(args)
        except FlottaError as error:
            _refuse(replies, error)
            return
        sending.add_done_callback(lambda done: self._take(done, args, replies))

    def _take(self, done: asyncio.Future[list[Any]], args: list[bytes], replies: list[Reply]) -> None:
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, CommandError) or error.code != "NOSCRIPT":
            _answer(replies, done)
            return
        again = asyncio.get_running_loop().create_task(self._load_and_run(args), name="flotta-map load script")
        self._loading.add(again)
        again.add_done_callback(self._loading.discard)
        again.add_done_callback(lambda late: _answer(replies, late))


def _answer(replies: list[Reply], done: asyncio.Future[list[Any]]) -> None:
    if done.cancelled():
        for reply in replies:
            reply.cancel()
        return
    error = done.exception()
    if error is not None:
        _refuse(replies, error)
        return
    last, *previous = done.result()
    first = int(last) - len(replies) + 1
    for number, reply in enumerate(replies):
        if not reply.done():
            reply.set_result((previous[number], first + number))


def _refuse(replies: list[Reply], error: BaseException) -> None:
    for reply in replies:
        if not reply.done():
            reply.set_exception(error)
