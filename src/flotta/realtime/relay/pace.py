"""How much of the tunnels may be on its way to each other instance: the rest waits here, in order.

Redis ends a subscriber that is too far behind (see `budget`). A session that cannot move (a busy one, one of a Redis
Cluster) is served through its tunnel for as long as it lives, and one large event for thousands of them is thousands of
messages to few instances, at once. That Redis has a message says nothing of whether its receiver has read it; so behind
each `MARK_BYTES` goes an ``Echo``, which the receiver answers when it has come to it.

Invariants: what is sent to one instance leaves in the order of the calls; never are more than `WAY_BYTES_MAX` on their
way to it, or one message that is larger; while something waits, a mark is on its way; an instance that does not answer
(of an older version) is waited for no longer than `ECHO_TIMEOUT_S` for each.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, final

from flotta.realtime.relay.wire import Echo, Message

__all__ = ["Pace"]

WAY_BYTES_MAX = 4_194_304
"""On their way to one other instance that has not said yet that it has them."""
MARK_BYTES = 524_288
ECHO_TIMEOUT_S = 2.0
HEAD_BYTES = 128
"""About what a message takes beside its payload, there and in Redis."""
WAYS_MAX = 1_000
"""Instances that are remembered."""

Send: TypeAlias = Callable[[str, Message, Callable[[], Any], Callable[[], None] | None], None]
"""As `Post.send`."""


class _Due(NamedTuple):
    """A message, not sent yet."""

    message: Message
    size_bytes: int
    on_unheard: Callable[[], Any]
    on_sent: Callable[[], None] | None


@final
class _Way:
    """To one instance."""

    __slots__ = ("under_way", "unmarked", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.unmarked = 0
        """Of those, sent since the last mark."""
        self.waiting: deque[_Due] = deque()

    def is_full(self, size_bytes: int) -> bool:
        return self.under_way > 0 and self.under_way + size_bytes > WAY_BYTES_MAX


@final
class Pace:
    """See the module. ``me`` gives the name under which this instance listens."""

    def __init__(self, send: Send, me: Callable[[], str]) -> None:
        self._send = send
        self._me = me
        self._ways: dict[str, _Way] = {}
        self._marks: dict[str, tuple[_Way, str, int, asyncio.TimerHandle]] = {}

    def send(
        self,
        to: str,
        message: Message,
        size_bytes: int,
        on_unheard: Callable[[], Any],
        on_sent: Callable[[], None] | None,
    ) -> None:
        """Give ``message`` to an instance, as soon as there is room. The callbacks are those of `Post.send`."""
        way = self._ways.get(to)
        if way is None:
            way = self._new_way(to)
        due = _Due(message, size_bytes + HEAD_BYTES, on_unheard, on_sent)
        if way.waiting or way.is_full(due.size_bytes):
            way.waiting.append(due)
            self._mark_if_none(to, way)
        else:
            self._go(to, way, due)

    def _new_way(self, to: str) -> _Way:
        if len(self._ways) >= WAYS_MAX:
            self._ways = {name: way for name, way in self._ways.items() if way.waiting or way.under_way > way.unmarked}
        way = self._ways[to] = _Way()
        return way

    def _go(self, to: str, way: _Way, due: _Due) -> None:
        way.under_way += due.size_bytes
        way.unmarked += due.size_bytes
        self._send(to, due.message, due.on_unheard, due.on_sent)
        if way.unmarked >= MARK_BYTES:
            self._mark(to, way)

    def _mark_if_none(self, to: str, way: _Way) -> None:
        if way.under_way == way.unmarked:
            self._mark(to, way)

    def _mark(self, to: str, way: _Way) -> None:
        echo_id, size_bytes, way.unmarked = secrets.token_urlsafe(9), way.unmarked, 0
        timer = asyncio.get_running_loop().call_later(ECHO_TIMEOUT_S, self.on_echoed, echo_id)
        self._marks[echo_id] = way, to, size_bytes, timer
        self._send(to, Echo(echo_id, self._me()), lambda: self.on_echoed(echo_id), None)

    def on_echoed(self, echo_id: str) -> None:
        """What was sent before that mark has come, or nobody is there for it to come to."""
        way, to, size_bytes, timer = self._marks.pop(echo_id, (None, "", 0, None))
        if way is None or timer is None:
            return
        timer.cancel()
        way.under_way -= size_bytes
        while way.waiting and not way.is_full(way.waiting[0].size_bytes):
            self._go(to, way, way.waiting.popleft())
        if way.waiting:
            self._mark_if_none(to, way)

    def close(self) -> None:
        """Send nothing more of what waits."""
        for _, _, _, timer in self._marks.values():
            timer.cancel()
        self._marks.clear()
        self._ways.clear()

    @property
    def waiting(self) -> int:
        """Messages that wait for room."""
        return sum(len(way.waiting) for way in self._ways.values())
