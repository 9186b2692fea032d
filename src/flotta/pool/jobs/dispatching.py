"""Callers of this node that wait for a worker: dispatches for the start, stops for the end.

Owns who waits for which answer. Invariants: whoever waits is registered before the question leaves, because the answer
comes on another connection and may be first; a wait that is over in time reads the record and never guesses; a caller
who is cancelled leaves nothing behind here, and what it asked for goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Any, Final, final

from flotta.errors import (
    AmbiguousOutcome,
    Closed,
    DispatchTimeout,
    NotRunning,
    PoolShutdown,
    RedisError,
    StartFailed,
    StopUnconfirmed,
    WireError,
    WorkerPoolError,
)
from flotta.pool.inbox import Entry
from flotta.pool.jobs.states import JobState, StopAnswer, WithdrawAnswer
from flotta.pool.jobs.store import JobStore
from flotta.pool.options import PoolOptions
from flotta.pool.stats import Counts
from flotta.pool.wire import Ring, parse_reply

__all__ = ["Dispatcher", "Started"]

_LATE_S: Final = 2.0
"""How long an answer that is on its way may take after a time-out."""
_RETRY_S: Final = 0.25


@final
class Started:
    """A job that a worker has started: its fencing token and that worker."""

    __slots__ = ("fence", "worker")

    def __init__(self, fence: int, worker: str) -> None:
        self.fence = fence
        self.worker = worker


@final
class Dispatcher:
    """The waiting callers of the node ``node``."""

    def __init__(self, store: JobStore, node: str, options: PoolOptions, counts: Counts, logger: Any) -> None:
        self._store = store
        self._node = node
        self._options = options
        self._counts = counts
        self._log = logger
        self._token = secrets.token_hex(6)
        self._number = 0
        self._starts: dict[str, asyncio.Future[Ring | None]] = {}
        self._stops: dict[str, set[asyncio.Future[None]]] = {}
        self._closed: WorkerPoolError | Closed | None = None

    async def dispatch(
        self, key: str, kind: str, payload: bytes, *, crashes_max: int, timeout_s: float | None, scheduler: str = ""
    ) -> Started:
        """Accept the job and wait until a worker has started it. See ``Node.dispatch``."""
        self._check_open()
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        self._number += 1
        did = f"{self._token}{self._number:x}"
        answer: asyncio.Future[Ring | None] = loop.create_future()
        self._starts[did] = answer
        limit_s = self._options.dispatch_timeout_s if timeout_s is None else timeout_s
        try:
            with contextlib.suppress(AmbiguousOutcome):  # perhaps accepted: the answer, or the record, will tell
                await self._store.dispatch(
                    key, kind, payload, node=self._node, did=did, crashes_max=crashes_max, scheduler=scheduler
                )
            timer = loop.call_at(begun_s + limit_s, self._expire, did)  # a fifth of what asyncio.timeout_at costs
            try:
                ring = await answer
            finally:
                timer.cancel()
            started = await self._withdraw(key, did, limit_s) if ring is None else self._read(ring)
        except Exception:
            self._counts.refused += 1
            raise
        finally:
            del self._starts[did]
        self._counts.dispatched += 1
        self._counts.busy.add(key)
        self._counts.latency.add(loop.time() - begun_s)
        return started

    def _read(self, ring: Ring) -> Started:
        if ring.type == "started":
            return Started(ring.fence, ring.worker)
        if ring.type == "failed":
            raise StartFailed(self._store.name, ring.key, ring.error)
        if ring.type == "shutdown" or self._closed is not None:
            raise PoolShutdown(self._store.name)
        raise StartFailed(self._store.name, ring.key, "it was stopped before it had started")

    def _expire(self, did: str) -> None:
        """Let the dispatch ``did`` wait no longer; an answer that comes from now on is kept for ``_withdraw``."""
        answer = self._starts.get(did)
        if answer is not None and not answer.done():
            self._starts[did] = asyncio.get_running_loop().create_future()
            answer.set_result(None)

    async def _withdraw(self, key: str, did: str, waited_s: float) -> Started:
        """The time is over: take the job back, or learn that it has started after all."""
        withdrawal = None
        for last in (False,) * 7 + (True,):
            try:
                withdrawal = await self._store.withdraw(key, did)
                break
            except RedisError:
                if last:
                    raise
                await asyncio.sleep(_RETRY_S)
        assert withdrawal is not None
        if withdrawal.answer is WithdrawAnswer.STARTED:
            return Started(withdrawal.fence, withdrawal.worker)
        if withdrawal.answer is WithdrawAnswer.GONE:
            # That job has ended, or never was accepted. An answer was written in the same step as its end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LATE_S):
                    ring = await self._starts[did]
                    assert ring is not None
                    return self._read(ring)
        is_stopping = withdrawal.answer is WithdrawAnswer.STOPPING
        raise DispatchTimeout(self._store.name, key, waited_s, withdrawn=not is_stopping)

    async def stop(self, key: str, timeout_s: float | None) -> None:
        """End the job for good and wait until it has ended. See ``Node.stop``."""
        self._check_open()
        limit_s = self._options.stop_timeout_s if timeout_s is None else timeout_s
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._stops.setdefault(key, set())
        waiting.add(answer)
        try:
            said = await self._store.stop(key, self._node)
            if said is StopAnswer.NOT_RUNNING:
                raise NotRunning(self._store.name, key)
            if said is StopAnswer.STOPPING:
                await self._wait_for_end(key, answer, limit_s)
        finally:
            waiting.discard(answer)
            if not waiting and self._stops.get(key) is waiting:
                del self._stops[key]

    async def _wait_for_end(self, key: str, answer: asyncio.Future[None], limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await answer
        except TimeoutError:
            before = await self._store.read(key)
            if before is not None and before.state is JobState.STOPPING:
                raise StopUnconfirmed(self._store.name, key, limit_s) from None

    # --- answers ------------------------------------------------------------------------------------------------

    def take(self, entries: Sequence[Entry]) -> list[Ring]:
        """Hand answers to whoever waits; gives the rest."""
        rest: list[Ring] = []
        for entry in entries:
            try:
                rings = parse_reply(entry.fields)
            except WireError as error:
                self._log.error("an answer to a node was dropped", node=self._node, error=str(error))
                continue
            for ring in rings:
                if ring.did:
                    self._settle(ring)
                elif ring.type == "stopped":
                    self._end(ring.key)
                else:
                    rest.append(ring)
        return rest

    def _settle(self, ring: Ring) -> None:
        answer = self._starts.get(ring.did)
        if answer is not None and not answer.done():
            answer.set_result(ring)

    def _end(self, key: str) -> None:
        for answer in self._stops.get(key, ()):
            if not answer.done():
                answer.set_result(None)

    async def recheck(self) -> None:
        """Answers may have been lost: whoever waits for an end whose record is gone has it."""
        for key in list(self._stops):
            info = await self._store.read(key)
            if info is None or info.state is not JobState.STOPPING:
                self._end(key)

    def close(self, reason: WorkerPoolError | Closed) -> None:
        """Nobody is answered any more: whoever waits raises ``reason``, and so do later calls. Who waits for the end
        of a job while the whole pool ends has it, though."""
        self._closed = reason
        for answer in self._starts.values():
            if not answer.done():
                answer.set_exception(reason)
                answer.exception()
        for waiting in list(self._stops.values()):
            for stop in waiting:
                if stop.done():
                    continue
                if isinstance(reason, PoolShutdown):
                    stop.set_result(None)
                else:
                    stop.set_exception(reason)
                    stop.exception()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed
