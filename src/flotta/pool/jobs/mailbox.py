"""The notifications of one job between the inbox of its worker and the job's function.

Owns which of them are done. Invariants: they come out in the order in which they were sent; one is *done* when the
function asks for the next (or has ended for good), not when it was handed out, so that a crash in between hands it out
once more; a cancelled wait loses none. At most one wait is under way for each iterator; several iterators share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, final

from flotta.errors import ConfigError

__all__ = ["Mailbox", "Notification", "Notifications"]

_STREAK_MAX: Final = 64  # notifications handed out without a turn of the loop, so that others run


@final
@dataclass(frozen=True, slots=True)
class Notification:
    """One message to a job. ``redelivered``: an earlier run of the job in this process was given it and crashed."""

    payload: bytes
    redelivered: bool = False


@final
class Mailbox:
    """What waits for one job here. ``on_done(ids)`` hears which entries of the inbox are not needed any more."""

    __slots__ = ("_closed", "_on_done", "_streak", "_taken", "_waiter", "_waiting")

    def __init__(self, on_done: Callable[[list[bytes]], None]) -> None:
        self._on_done = on_done
        self._waiting: deque[tuple[bytes, bytes, bool]] = deque()  # inbox entry id, payload, handed out before
        self._taken: list[tuple[bytes, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._streak = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._taken)

    def put(self, entry_id: bytes, payload: bytes) -> None:
        """One more has arrived."""
        if self._closed:
            self._on_done([entry_id])
            return
        self._waiting.append((entry_id, payload, False))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def settle(self) -> None:
        """What was handed out is done."""
        if self._taken:
            done, self._taken = self._taken, []
            self._on_done([entry_id for entry_id, _ in done])

    def take(self) -> Notification | None:
        """Hand out the next, if there is one."""
        if not self._waiting:
            return None
        entry_id, payload, again = self._waiting.popleft()
        self._taken.append((entry_id, payload))
        return Notification(payload, again)

    def rewind(self) -> None:
        """The run has crashed: what it was given and has not done comes out once more."""
        self._waiting.extendleft((entry_id, payload, True) for entry_id, payload in reversed(self._taken))
        self._taken.clear()

    def not_done(self) -> list[bytes]:
        """The inbox entries of everything that is not done, in order: what moves along with the job."""
        return [entry_id for entry_id, _ in self._taken] + [entry_id for entry_id, _, _ in self._waiting]

    def empty(self) -> list[tuple[bytes, bytes]]:
        """Take out everything that is not done, with its inbox entries, in order: it goes elsewhere."""
        left = self._taken + [(entry_id, payload) for entry_id, payload, _ in self._waiting]
        self._taken = []
        self._waiting.clear()
        return left

    def close(self) -> None:
        """The job has ended here for good: nothing of this is needed any more."""
        self._closed = True
        self.settle()
        if self._waiting:
            left, self._waiting = self._waiting, deque()
            self._on_done([entry_id for entry_id, _, _ in left])

    async def arrives(self, until_s: float | None) -> None:
        """Return when there may be one, or at ``until_s`` of the loop's clock. Cancelling is harmless."""
        loop = asyncio.get_running_loop()
        if self._waiter is None or self._waiter.done():
            self._waiter = loop.create_future()
        if until_s is None:
            await asyncio.shield(self._waiter)
            return
        timer: asyncio.Future[None] = loop.create_future()
        handle = loop.call_at(until_s, _finish, timer)
        try:
            await asyncio.wait((self._waiter, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            handle.cancel()

    async def breathe(self) -> None:
        """Let others run, once in a while."""
        self._streak += 1
        if self._streak >= _STREAK_MAX:
            self._streak = 0
            await asyncio.sleep(0)


@final
class Notifications(AsyncIterator["Notification | None"]):
    """What ``Job.notifications`` gives. It never ends by itself: the job is cancelled when it is over."""

    __slots__ = ("_every_s", "_mailbox", "_next_tick_s")

    def __init__(self, mailbox: Mailbox, every_s: float | None) -> None:
        if every_s is not None and not 0 < every_s < float("inf"):
            raise ConfigError("every_s", every_s, "a finite number of seconds above 0, or None", source="notifications")
        self._mailbox = mailbox
        self._every_s = every_s
        self._next_tick_s: float | None = None

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification | None:
        mailbox = self._mailbox
        mailbox.settle()
        await mailbox.breathe()
        while True:
            if self._tick():
                return None
            note = mailbox.take()
            if note is not None:
                return note
            await mailbox.arrives(self._next_tick_s)

    def _tick(self) -> bool:
        """Whether a tick is due. One that was missed is not made up for: the next comes on the old beat."""
        if self._every_s is None:
            return False
        now_s = asyncio.get_running_loop().time()
        if self._next_tick_s is None:
            self._next_tick_s = now_s + self._every_s
            return False
        if now_s < self._next_tick_s:
            return False
        missed = int((now_s - self._next_tick_s) // self._every_s)
        self._next_tick_s += (missed + 1) * self._every_s
        return True


def _finish(timer: asyncio.Future[None]) -> None:
    if not timer.done():
        timer.set_result(None)
