"""The beats of one node: a thread that renews the leases of its workers, whatever the main loop is doing.

Owns the thread, its event loop, its connection, and every change of the lease machines. Invariants:

* A blocked main loop delays no beat. It must only turn once in a ttl; if it does not, the leases are let go, because
  nobody would notice that the work has stopped.
* A lease ends on time without any news: the thread looks, a timer of the main loop looks, and whoever asks
  ``Lease.owned`` looks, each by the clock.
* ``on_lost`` runs once, on the main loop.
* Machines change under one lock; ``owned`` only reads, and needs none.

Why a thread and not a task: a handler that computes for ten seconds must not cost the worker all its jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final

import structlog

from flotta.errors import CommandError, FlottaError
from flotta.pool.keys import PoolKeys
from flotta.pool.members.boottime import boottime_s
from flotta.pool.members.lease import LeaseMachine, LeaseTimes, Loss, Rhythm
from flotta.pool.members.scripts import BEAT
from flotta.redis import Arg, Link, Redis

__all__ = ["BeatNews", "Heartbeat", "Lease", "stream_life_ms"]

_STOP_TIMEOUT_S: Final = 5.0
_LOOKS_PER_TTL: Final = 20


def stream_life_ms(ttl_s: float) -> int:
    """How long a stream of a member stays after its last renewal: long after everybody has noticed a death."""
    return int((10 * ttl_s + 60) * 1000)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BeatNews:
    """What a confirmed beat brought."""

    epoch: int
    """Of the slot table."""
    shutdown: str | None
    """The node that shuts the pool down, if one does."""
    was_present: bool
    """False: the node had been taken for gone (an outage, lost data); its replies stream may have been made anew."""
    is_over: bool = False
    """The pool was shut down and cleared away without this node. It is the last news; nothing was written."""


@final
class Lease:
    """The lease of the worker ``worker``. Read it from any thread; only the heartbeat changes it."""

    __slots__ = ("_machine", "worker")

    def __init__(self, worker: str, machine: LeaseMachine) -> None:
        self.worker = worker
        self._machine = machine

    def owned(self, now_s: float | None = None) -> bool:
        """Whether the worker may do and write what it owns at this moment, by the local clock. Never True again once
        it was False. ``now_s``: as ``boottime_s()`` gives it."""
        return self._machine.trusted(boottime_s() if now_s is None else now_s)

    @property
    def trusted_until_s(self) -> float:
        """Until when, on ``boottime_s``, if nothing is heard from Redis any more."""
        return self._machine.trusted_until_s

    @property
    def loss(self) -> Loss | None:
        """Why it was lost, if it was."""
        return self._machine.loss


@dataclass(slots=True)
class _Held:
    lease: Lease
    machine: LeaseMachine
    on_lost: Callable[[Lease, Loss], None]


@final
class Heartbeat:
    """The beats of the node ``node``. ``on_news`` is called on the main loop after each confirmed beat."""

    def __init__(
        self,
        redis: Redis,
        keys: PoolKeys,
        node: str,
        *,
        ttl_s: float,
        on_news: Callable[[BeatNews], None],
        logger: Any = None,
    ) -> None:
        self.times = LeaseTimes(ttl_s)
        self.life = ""
        """Of the pool, as the node has joined it."""
        self._keys = keys
        self._node = node
        self._on_news = on_news
        self._logger = logger or structlog.get_logger("flotta.pool")
        # Opened by the thread with its first call. It fails fast and comes back fast: a lease is at stake.
        base = redis.dedicated("lease")
        patience_s = self.times.period_s
        self._endpoint = base.endpoint
        self._link_options = replace(
            base.options,
            command_timeout_s=patience_s,
            connect_timeout_s=patience_s,
            heartbeat_s=max(patience_s, 0.5),
            reconnect_min_s=min(base.options.reconnect_min_s, self.times.retry_s),
            reconnect_max_s=max(min(base.options.reconnect_max_s, self.times.retry_s), 0.05),
            retries=0,
        )
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._let_go: set[str] = set()
        self._failing = False
        self._is_ending = False  # a beat has seen that the pool is being shut down
        self._is_over = False
        self._rhythm = Rhythm(self.times, boottime_s())
        self._main: asyncio.AbstractEventLoop
        self._guard_timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._thread_task: asyncio.Task[None] | None = None
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event
        self._stopping = False

    # --- life, on the main loop -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to beat. You owe it ``stop``."""
        assert self._thread is None, "a heartbeat is started once"
        self._main = asyncio.get_running_loop()
        self._rhythm = Rhythm(self.times, boottime_s())
        self._thread = threading.Thread(target=self._run, name=f"flotta-lease {self._node}", daemon=True)
        self._thread.start()
        self._guard()

    async def stop(self) -> None:
        """Stop beating and end the thread. What is still held ends with its ttl. Again, or before ``start``: harmless.

        Cancelled: the thread still ends by itself.
        """
        self._stopping = True
        if self._guard_timer is not None:
            self._guard_timer.cancel()
        loop, task = self._thread_loop, self._thread_task
        if task is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.call_soon_threadsafe(task.cancel)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def hold(self, worker: str, started_s: float, on_lost: Callable[[Lease, Loss], None]) -> Lease:
        """Renew the lease that ``worker`` was given by an attempt that began at ``started_s``, until ``release``.

        ``on_lost(lease, why)`` is called once, on the main loop, if it is lost first.
        """
        machine = LeaseMachine(self.times, started_s, turned_s=boottime_s())
        held = _Held(Lease(worker, machine), machine, on_lost)
        with self._lock:
            assert worker not in self._held, "a worker id is used once"
            self._held[worker] = held
        return held.lease

    def release(self, worker: str) -> None:
        """Stop renewing: the lease is not trusted from now on. Unknown or lost: harmless."""
        with self._lock:
            held = self._held.pop(worker, None)
            if held is not None:
                held.machine.left()

    def blameless(self) -> bool:
        """Whether this node had an outage lately, so that it should blame nobody for dying."""
        return self._rhythm.blameless(boottime_s())

    def _guard(self) -> None:
        """The main loop's own look at the leases: it has turned, and the clock may say that one is over."""
        now_s = boottime_s()
        for held in self._every():
            self._change(held, lambda machine: machine.loop_turned(now_s))
        self._guard_timer = self._main.call_later(self.times.ttl_s / _LOOKS_PER_TTL, self._guard)

    # --- both sides -----------------------------------------------------------------------------------------------

    def _every(self) -> list[_Held]:
        with self._lock:
            return list(self._held.values())

    def _change(self, held: _Held, event: Callable[[LeaseMachine], Loss | None]) -> None:
        """Tell a machine of an event; if that ends the lease, whoever holds it hears of it."""
        with self._lock:
            loss = event(held.machine)
            if loss is None:
                return
            self._held.pop(held.lease.worker, None)
            if loss.lets_go:
                self._let_go.add(held.lease.worker)
        self._poke()
        self._tell(lambda: held.on_lost(held.lease, loss))

    def _poke(self) -> None:
        loop = self._thread_loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._wake.set)

    def _tell(self, say: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the main loop was closed: nobody is left to tell
            self._main.call_soon_threadsafe(say)

    # --- on the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_until_stopped())
        except asyncio.CancelledError:
            return  # by stop
        except Exception:  # our bug: the leases end by the clock, and this says why
            self._logger.exception("the heartbeat of a pool has ended", node=self._node)

    async def _beat_until_stopped(self) -> None:
        self._wake = asyncio.Event()
        self._thread_task = asyncio.current_task()
        self._thread_loop = asyncio.get_running_loop()  # last: who sees it may use the others
        link = Link(self._endpoint, options=self._link_options, logger=self._logger)
        try:
            while not (self._stopping or self._is_over):
                self._look()
                now_s = boottime_s()
                if self._let_go or now_s >= self._rhythm.due_s():
                    await self._beat(link)
                    continue
                pause_s = min(self._rhythm.due_s() - now_s, self.times.ttl_s / _LOOKS_PER_TTL)
                self._wake.clear()
                if not self._let_go and not self._stopping:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), pause_s)
        finally:
            await link.aclose(drain_s=0.0)

    def _look(self) -> None:
        """The thread's look at the leases: before a beat, so that what ended while all stood still is not renewed."""
        now_s = boottime_s()
        for held in self._every():
            self._change(held, lambda machine: machine.tick(now_s))

    async def _beat(self, link: Link) -> None:
        """One attempt for the node and all its workers."""
        started_s = boottime_s()
        gap_s = self._rhythm.gap_s(started_s)
        self._rhythm.beat_started(started_s)
        with self._lock:
            held = list(self._held.values())
            let_go = list(self._let_go)
        workers = [one.lease.worker for one in held]
        ttl_ms = int(self.times.ttl_s * 1000)
        args: list[Arg] = [self._node, ttl_ms, stream_life_ms(self.times.ttl_s), self.life]
        try:
            args += [int(self._is_ending or await _kept_its_data(link, gap_s)), len(workers), *workers, *let_go]
            reply = await BEAT(link, keys=[self._keys.meta], args=args)
        except FlottaError as error:
            self._rhythm.beat_failed()
            if not self._failing:  # once for each outage: it tries again every few hundred milliseconds
                self._failing = True
                self._logger.debug("a heartbeat failed", node=self._node, error=str(error))
            await asyncio.sleep(max(0.0, self._rhythm.due_s() - boottime_s()))
            return
        self._failing = False
        self._rhythm.beat_confirmed(boottime_s())
        self._take(reply, started_s, held, let_go)

    def _take(self, reply: list[Any], started_s: float, held: list[_Held], let_go: list[str]) -> None:
        with self._lock:
            self._let_go.difference_update(let_go)
        _, epoch, shutdown, was_present, life, *renewed = reply
        self._is_ending = self._is_ending or bool(shutdown)
        self._is_over = not life
        self.life = life.decode() or self.life
        now_s = boottime_s()
        for one, lives in zip(held, renewed, strict=True):
            if lives:
                self._change(one, lambda machine: machine.beat_confirmed(started_s, now_s))
            else:
                self._change(one, LeaseMachine.beat_lost)
        news = BeatNews(epoch=epoch, shutdown=shutdown.decode() or None, was_present=bool(was_present))
        news = replace(news, is_over=self._is_over)
        self._tell(lambda: self._on_news(news))


async def _kept_its_data(link: Link, gap_s: float) -> bool:
    """Whether the server ran all the time in which this node was not heard (0: it was heard): if the pool is not there
    any more somebody has ended it. Raises what ``Link.call`` raises, but False where an ACL denies to ask."""
    if not gap_s:
        return False
    try:
        info: bytes | str = await link.call("INFO", "server")
    except CommandError:
        return False
    uptime_s = re.search(r"^uptime_in_seconds:(\d+)", info if isinstance(info, str) else info.decode(), re.MULTILINE)
    return uptime_s is not None and int(uptime_s[1]) > gap_s + 1.0
