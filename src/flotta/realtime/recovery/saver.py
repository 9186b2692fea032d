"""Saves sessions: what has changed in this tick with one write, and every session again before it is old.

Invariants: a socket's saves leave in the order of its changes; of one that another server has claimed nothing is saved
any more; at most `WAIT_S` is anybody kept waiting, whatever Redis does.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, final

from flotta.errors import Closed, RedisError
from flotta.realtime.client import Socket
from flotta.realtime.recovery.store import Saved, Store
from flotta.realtime.sampling import is_told

__all__ = ["Saver"]

WAIT_S = 1.0
SWEEP_S = 1.0
BATCH_MAX = 200
"""Sessions that are saved with one write."""
CATCH_UP = 1.5
"""How much faster than evenly a bunch of sessions that fall due together is saved again."""


@final
class Saver:
    """``saved_of`` gives what is to be saved of a socket (None: nothing), ``on_taken`` is told who has lost it."""

    def __init__(
        self,
        store: Store,
        *,
        refresh_s: float,
        saved_of: Callable[[Socket], Saved | None],
        on_taken: Callable[[Socket], None],
        logger: Any,
    ) -> None:
        self.saved = 0
        self.failed = 0
        self._store = store
        self._refresh_s = refresh_s
        self._saved_of = saved_of
        self._on_taken = on_taken
        self._log = logger
        self._failures: Counter[str] = Counter()
        """What has failed since sessions were saved last."""
        self._saved_s: dict[Socket, float] = {}  # oldest first
        self._dirty: dict[Socket, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to refresh."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="realtime recovery refresh")

    async def aclose(self) -> None:
        """Stop refreshing and let what is on its way end. Idempotent."""
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            await asyncio.wait({sweeper})
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=WAIT_S)

    def run(self, work: Any, name: str) -> None:
        """Own a coroutine until it ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def tell(self, what: str, error: Exception) -> None:
        """Write into the log what Redis has not done; rarely, while it goes on."""
        self._failures[what] += 1
        if is_told(self._failures[what]):
            self._log.warning(what, reason=str(error), times=self._failures[what])

    # --- what changes ---

    def changed(self, socket: Socket) -> asyncio.Future[None]:
        """Save the socket's session at the end of this tick. The future is done when it is stored, or has failed."""
        done = self._dirty.get(socket)
        if done is None:
            done = self._dirty[socket] = asyncio.get_running_loop().create_future()
            if len(self._dirty) == 1:
                asyncio.get_running_loop().call_soon(self._flush)
        return done

    async def stored(self, socket: Socket) -> None:
        """Save it and return when it is stored; after `WAIT_S` in any case."""
        done = self.changed(socket)
        if self._store.reachable:
            await asyncio.wait({done}, timeout=WAIT_S)

    def forget(self, socket: Socket) -> None:
        """Save nothing more of it."""
        self._saved_s.pop(socket, None)
        done = self._dirty.pop(socket, None)
        if done is not None and not done.done():
            done.set_result(None)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        if dirty:
            self.run(self._save_dirty(dirty), "realtime recovery save")

    async def _save_dirty(self, dirty: dict[Socket, asyncio.Future[None]]) -> None:
        try:
            await self._save(dirty)
        finally:
            for done in dirty.values():
                if not done.done():
                    done.set_result(None)

    # --- what grows old ---

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._store.reachable:
                try:
                    await self._save(self._due())
                except Exception:  # noqa: BLE001 - our bug, but the sessions of all others must go on
                    self._log.exception("refreshing sessions failed")

    def _due(self) -> list[Socket]:
        """The oldest, not all at once: who came together is spread over the time."""
        most = max(1, math.ceil(len(self._saved_s) * SWEEP_S / self._refresh_s * CATCH_UP))
        limit_s = asyncio.get_running_loop().time() - self._refresh_s
        due: list[Socket] = []
        for socket, saved_s in self._saved_s.items():
            if saved_s > limit_s or len(due) == most:
                break
            due.append(socket)
        return due

    async def _save(self, sockets: Iterable[Socket]) -> None:
        """In pieces, each packed right before it leaves: what was packed earlier could be older than what is said of
        the same socket meanwhile, or bring back what has ended."""
        waiting = list(sockets)
        for at in range(0, len(waiting), BATCH_MAX):
            await self._save_some(waiting[at : at + BATCH_MAX])

    async def _save_some(self, sockets: list[Socket]) -> None:
        now_s = asyncio.get_running_loop().time()
        batch: list[tuple[Socket, Saved]] = []
        for socket in sockets:
            saved = self._saved_of(socket)
            self._saved_s.pop(socket, None)
            if saved is not None:
                self._saved_s[socket] = now_s
                batch.append((socket, saved))
        if not batch:
            return
        try:
            answers = await self._store.save([saved for _, saved in batch])
        except (RedisError, Closed) as error:
            self.failed += len(batch)
            self._retry(socket for socket, _ in batch)
            self.tell("sessions could not be saved", error)
            return
        self.saved += len(batch)
        self._failures.clear()
        for (socket, saved), ours in zip(batch, answers, strict=True):
            if not ours and socket.kept is not None and socket.kept.owner == saved.owner:
                self._on_taken(socket)

    def _retry(self, sockets: Iterable[Socket]) -> None:
        """The next sweep begins with them."""
        again = {socket: 0.0 for socket in sockets if socket in self._saved_s}
        self._saved_s = {**again, **{socket: at for socket, at in self._saved_s.items() if socket not in again}}
