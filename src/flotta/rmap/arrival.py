"""When the copy holds what Redis has answered: one's own writes are seen by whoever awaited them.

Owns the waiting, and its bounds. Invariants: after ``catch_up`` the copy is at the revision of the reply or later, or
the map is stale, or a message is lost, which is known then and repaired; a wait ends with the map.

Why it is cheap: the message of a write leaves the server before its reply, so it is here already or comes in the same
turn; and a set is taken from its reply (see ``Replica.write_own``).
"""

from __future__ import annotations

import asyncio
from typing import final

from flotta.errors import Closed, MapTimeout
from flotta.rmap.events import Waiters
from flotta.rmap.follower import Follower
from flotta.rmap.wire import REVISION_MAX

__all__ = ["CATCH_UP_S", "Arrivals"]

CATCH_UP_S = 1.0
"""How long a write whose reply has come waits for its message at most: later, that is lost."""


@final
class Arrivals:
    """What the writers of one map wait for. ``lowest``: the lowest revision that a reply can have had if Redis kept its
    data since the call; one below it means that revisions began anew, so only another load can tell what is there."""

    __slots__ = ("_follower", "_name", "_waiters")

    def __init__(self, name: str, follower: Follower) -> None:
        self._name = name
        self._follower = follower
        self._waiters = Waiters()

    async def catch_up(self, lowest: int, revision: int) -> None:
        """Return when the copy is at ``revision``; at once while the subscription is gone, after ``CATCH_UP_S`` at the
        latest. Cancelling it is harmless."""
        follower = self._follower
        follower.apply_inbox()
        if not follower.subscribed or (lowest <= revision <= follower.replica.revision and not follower.stale):
            return
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._future(lowest, revision)
        except TimeoutError:
            follower.note_missing()
        except Closed:
            return  # the write is done, and nobody reads here any more

    async def wait_for(self, lowest: int, revision: int, limit_s: float, otherwise: str) -> None:
        """Return when the copy is at ``revision``. Raises MapTimeout after ``limit_s`` seconds, Closed."""
        self._follower.apply_inbox()
        if not lowest <= revision <= self._follower.replica.revision:
            await self._within(limit_s, self._future(lowest, revision), otherwise)

    async def wait_for_load(self, limit_s: float, otherwise: str) -> None:
        """Have the whole map read again. Raises MapTimeout after ``limit_s`` seconds, Closed."""
        await self._within(limit_s, self._future(1, 0), otherwise)

    def _future(self, lowest: int, revision: int) -> asyncio.Future[None]:
        load_number = self._follower.load_number
        if revision < lowest:
            self._follower.want_load()
            revision = REVISION_MAX + 1  # not before that load
        return self._waiters.add(revision, load_number)

    async def _within(self, limit_s: float, arrival: asyncio.Future[None], otherwise: str) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await arrival
        except TimeoutError as error:
            raise MapTimeout(self._name, limit_s, otherwise) from error

    # --- told by the map ----------------------------------------------------------------------------------------------

    def reach(self, revision: int) -> None:
        """The copy is at ``revision``."""
        self._waiters.reach(revision)

    def loaded(self, number: int) -> None:
        """Load ``number`` is in the copy."""
        self._waiters.loaded(number)
        self._waiters.reach(self._follower.replica.revision)

    def close(self) -> None:
        """The map is closed: nothing more will come."""
        self._waiters.fail(Closed(f"map {self._name!r}"))
