"""Questions to the other servers that wait for answers, whatever adapter carries them.

Owns: which requests are pending, what has come in for each, and when each is over. No I/O: the adapter sends, and hands
in what it reads. Invariants:

- at most `PENDING_MAX` requests are pending; every one of them ends: with its answers, in time, or by its caller;
- of one request at most as many answers count as servers were asked, and one of each server that the adapter can tell
  apart; at most as many acknowledgements as its server has announced clients;
- what comes too late, too often or to nobody is dropped and counted (`Requests.dropped`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar, final

from flotta.errors import ClusterTimeout, RealtimeError
from flotta.realtime.adapters import OnAck, OnCount, OnGone

__all__ = ["PENDING_MAX", "Read", "Requests", "Send"]

PENDING_MAX = 10_000
"""Requests that may wait for answers at once."""

T = TypeVar("T")
Send: TypeAlias = Callable[[str], None]
"""Sends the request under this id; raises if it cannot be sent."""
Read: TypeAlias = Callable[[Any], list[T]]
"""What one server's answer holds. Raises WireError: then it is no answer."""


@final
class Requests:
    """The pending requests of one adapter. ``prefix`` begins every request's id: answers to other servers' requests,
    where an adapter hears those too, are told by it."""

    def __init__(self, prefix: str, *, pending_max: int = PENDING_MAX) -> None:
        self.dropped = 0
        """Answers that nobody waited for any more."""
        self._prefix = prefix
        self._pending_max = pending_max
        self._numbers = itertools.count(1)
        self._gathering: dict[str, _Gathering[Any]] = {}
        self._asking: dict[str, _Asking] = {}

    def __len__(self) -> int:
        return len(self._gathering) + len(self._asking)

    def has(self, request_id: str) -> bool:
        """Whether the request is pending."""
        return request_id in self._gathering or request_id in self._asking

    def _new_id(self) -> str:
        if len(self) >= self._pending_max:
            raise RealtimeError(f"{self._pending_max} requests to other servers wait for answers: make fewer at a time")
        return f"{self._prefix}-{next(self._numbers)}"

    # --- servers that are gone ---

    def heard(self, request_id: str) -> frozenset[str]:
        """The servers that have answered a pending request, as far as the adapter tells them apart."""
        waiting = self._gathering.get(request_id) or self._asking.get(request_id)
        return frozenset() if waiting is None else frozenset(waiting.heard)

    def settle(self, request_id: str, missing: int) -> None:
        """Of those that owe an answer only ``missing`` are still there: the others count as having nothing to say."""
        if (waiting := self._gathering.get(request_id)) is not None:
            waiting.settle(missing)
        elif request_id in self._asking:
            self._advance(request_id, lambda asking: asking.settle(missing))

    # --- one answer of each server ---

    async def gather(self, name: str, *, expected: int, timeout_s: float, send: Send, read: Read[T]) -> list[T]:
        """What ``expected`` servers answer, joined in the order of their coming. Cancelling stops the waiting.

        Raises:
            ClusterTimeout: fewer answered within ``timeout_s``; ``.answers`` has what they said.
            RealtimeError: too many requests are pending.
        """
        if expected <= 0:
            return []
        request_id = self._new_id()
        waiting = self._gathering[request_id] = _Gathering(expected, read)
        try:
            send(request_id)
            async with asyncio.timeout(timeout_s):
                await waiting.done
        except TimeoutError:
            raise ClusterTimeout(
                name,
                expected=waiting.expected,
                answered=waiting.answered,
                waited_s=timeout_s,
                answers=waiting.answers,
            ) from None
        finally:
            del self._gathering[request_id]
        return waiting.answers

    def answer(self, request_id: str, answer: Any, server: str = "") -> None:
        """A server's answer has come; ``server``: whose, if the adapter knows. Raises WireError for a junk one."""
        waiting = self._gathering.get(request_id)
        if waiting is None or not waiting.add(answer, server):
            self._drop(request_id)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """No answer can come in any more: end all that wait for one. Acknowledgements may still come."""
        for waiting in self._gathering.values():
            waiting.fail(make_error())

    # --- acknowledgements of clients ---

    def listen(
        self, *, expected: int, on_count: OnCount, on_ack: OnAck, on_gone: OnGone, timeout_s: float, send: Send
    ) -> str:
        """The id of a request whose ``expected`` servers first say how many clients they have asked, and then hand on
        each client's answer, or say that it has left. It is forgotten when all has come, or after ``timeout_s``.

        Raises:
            RealtimeError: too many requests are pending.
            Exception: whatever ``send`` raises; then nothing is pending.
        """
        request_id = self._new_id()
        timer = asyncio.get_running_loop().call_later(timeout_s, self._asking.pop, request_id, None)
        self._asking[request_id] = _Asking(expected, on_count, on_ack, on_gone, timer)
        try:
            send(request_id)
        except BaseException:
            self._forget(request_id)
            raise
        return request_id

    def count(self, request_id: str, clients: int, server: str = "") -> None:
        """A server has asked so many clients."""
        self._advance(request_id, lambda asking: asking.count(clients, server))

    def ack(self, request_id: str, args: list[Any]) -> None:
        """A client has answered."""
        self._advance(request_id, lambda asking: asking.ack(args))

    def gone(self, request_id: str) -> None:
        """A client has left without an answer."""
        self._advance(request_id, lambda asking: asking.gone())

    def _advance(self, request_id: str, step: Callable[[_Asking], bool]) -> None:
        asking = self._asking.get(request_id)
        if asking is None or not step(asking):
            self._drop(request_id)
        elif asking.complete:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        asking = self._asking.pop(request_id, None)
        if asking is not None:
            asking.timer.cancel()

    def _drop(self, request_id: str) -> None:
        if request_id.startswith(self._prefix):
            self.dropped += 1

    def close(self, make_error: Callable[[], Exception]) -> None:
        """End everything that waits."""
        self.fail(make_error)
        for request_id in list(self._asking):
            self._forget(request_id)


class _Gathering(Generic[T]):
    """One request that every server answers once."""

    __slots__ = ("_read", "answered", "answers", "done", "expected", "heard")

    def __init__(self, expected: int, read: Read[T]) -> None:
        self.expected = expected
        self.answered = 0
        self.answers: list[T] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: set[str] = set()
        self._read = read

    def add(self, answer: Any, server: str) -> bool:
        if self.done.done() or server in self.heard:
            return False
        self.answers += self._read(answer)
        if server:
            self.heard.add(server)
        self.answered += 1
        if self.answered == self.expected:
            self.done.set_result(None)
        return True

    def settle(self, missing: int) -> None:
        if missing <= 0 and not self.done.done():
            self.expected = self.answered
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # the caller may be cancelled in this tick: then nobody else asks


class _Asking:
    """One request that clients acknowledge. A server's count comes before its clients' answers: adapters keep order."""

    __slots__ = ("_acks_due", "_counts_due", "_on_ack", "_on_count", "_on_gone", "heard", "timer")

    def __init__(
        self, expected: int, on_count: OnCount, on_ack: OnAck, on_gone: OnGone, timer: asyncio.TimerHandle
    ) -> None:
        self.timer = timer
        self._counts_due = expected
        self._acks_due = 0
        self.heard: set[str] = set()
        self._on_count = on_count
        self._on_ack = on_ack
        self._on_gone = on_gone

    @property
    def complete(self) -> bool:
        return self._counts_due == 0 and self._acks_due == 0

    def count(self, clients: int, server: str) -> bool:
        if self._counts_due == 0 or server in self.heard:
            return False
        if server:
            self.heard.add(server)
        self._counts_due -= 1
        self._acks_due += clients
        self._on_count(clients)
        return True

    def ack(self, args: list[Any]) -> bool:
        if self._acks_due == 0:
            return False
        self._acks_due -= 1
        self._on_ack(args)
        return True

    def gone(self) -> bool:
        if self._acks_due == 0:
            return False
        self._acks_due -= 1
        self._on_gone()
        return True

    def settle(self, missing: int) -> bool:
        while self._counts_due > max(missing, 0):
            self._counts_due -= 1
            self._on_count(0)
        return True
