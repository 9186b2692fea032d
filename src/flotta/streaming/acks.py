"""Acknowledgements on their way: those of one loop tick leave as one XACK per stream.

Invariants: an ack is written at most one tick after it was asked for; whoever awaits it hears its outcome; what met a
lost connection is sent again until ``patience_s`` is over (XACK may run twice without harm); cancelling one waiter
touches no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from flotta.errors import CommandError, FlottaError, Outcome, RedisError, StateError
from flotta.redis import Link
from flotta.streaming.event import Event

__all__ = ["Acks"]

_IDS_PER_COMMAND_MAX: Final = 5_000
_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0

_Command = list[str]
_Waiter = asyncio.Future[None]


@final
class Acks:
    """The outgoing acks of one sink. ``key_of`` gives the key of a stream by its name."""

    def __init__(self, link: Link, group: str, key_of: Callable[[str], str], *, patience_s: float) -> None:
        self._link = link
        self._group = group
        self._key_of = key_of
        self._patience_s = patience_s
        self._ids: dict[str, list[str]] = {}
        self._waiters: list[_Waiter] = []
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._under_way: set[asyncio.Future[Any]] = set()
        self.acked = 0

    def add(self, events: Sequence[Event[Any]]) -> asyncio.Future[None]:
        """Ack ``events`` with everything else of this tick; the future ends when the server has answered."""
        ids = self._ids
        for event in events:
            try:
                ids[event.stream].append(event.id)
            except KeyError:
                ids[event.stream] = [event.id]
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        self._schedule()
        return waiter

    def add_ids(self, stream: str, event_ids: Sequence[str]) -> None:
        """Ack by id, with nobody waiting."""
        if event_ids:
            self._ids.setdefault(stream, []).extend(event_ids)
            self._schedule()

    async def flush(self) -> None:
        """Return when every ack so far has its outcome. Cancelling leaves them on their way."""
        self._send()
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if not self._ids and not self._waiters:
            return
        collected, self._ids = self._ids, {}
        waiters, self._waiters = self._waiters, []
        commands = [
            ["XACK", self._key_of(stream), self._group, *ids[first : first + _IDS_PER_COMMAND_MAX]]
            for stream, ids in collected.items()
            for first in range(0, len(ids), _IDS_PER_COMMAND_MAX)
        ]
        try:
            replies = asyncio.ensure_future(self._link.call_many(commands))
        except StateError as error:
            _tell(waiters, error)
            return
        self._under_way.add(replies)
        replies.add_done_callback(lambda done: self._settle(done, commands, waiters))

    def _settle(self, done: asyncio.Future[list[Any]], commands: list[_Command], waiters: list[_Waiter]) -> None:
        self._under_way.discard(done)
        try:
            self._account(done.result())
        except RedisError as error:
            if error.outcome is Outcome.APP:
                _tell(waiters, error)
                return
            again = self._loop.create_task(self._again(commands, waiters), name=f"ack again {self._group}")
            self._under_way.add(again)
            again.add_done_callback(self._under_way.discard)
            return
        _tell(waiters, None)

    def _account(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
            self.acked += reply

    async def _again(self, commands: list[_Command], waiters: list[_Waiter]) -> None:
        """XACK until it has an answer or ``patience_s`` is over: then the events come again, to some consumer."""
        deadline_s = self._loop.time() + self._patience_s
        pause_s = _RETRY_MIN_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_MAX_S)
            try:
                self._account(await self._link.call_many(commands))
            except StateError as error:  # the link was closed meanwhile
                _tell(waiters, error)
                return
            except RedisError as error:
                if error.outcome is Outcome.APP or self._loop.time() >= deadline_s:
                    _tell(waiters, error)
                    return
            else:
                _tell(waiters, None)
                return


def _tell(waiters: list[_Waiter], error: FlottaError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            waiter.exception()  # not every ack is awaited
