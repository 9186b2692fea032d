"""One blocking connection of a node reads all its streams: the inboxes of its workers and the replies to it.

Owns the cursors, and what is trimmed. Invariants:

* An entry is handed to its stream's taker exactly once while this process lives, in order; a lost connection loses
  none, because the cursor moves only with entries that were handed over.
* A stream is trimmed below everything that is done. A notification is done when the job has handled it, everything
  else when it was handed over: so what a dead worker's inbox still holds is what its jobs have not seen.
* After each new connection, and when a stream has gone, the taker is asked to reconcile with the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, final

import structlog

from flotta.errors import CommandError, FlottaError, Outcome, RedisError
from flotta.redis import Arg, Redis
from flotta.streaming.tail import unblock

__all__ = ["Entry", "Inbox", "Mail"]

_BLOCK_MS: Final = 5_000
_COUNT: Final = 1_000
_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
_TRIM_PERIOD_S: Final = 0.05
_DELETE_MAX: Final = 1_000  # ids in one XDEL: it holds the server for less than a millisecond then


class Entry(NamedTuple):
    """One entry of a stream: its id and its fields (field, value, field, value, ...) for ``wire.py``."""

    id: bytes
    fields: list[bytes]


@final
class Mail:
    """One stream that is read. ``keep(id)`` holds an entry back from trimming until ``done([ids])``."""

    __slots__ = ("_inbox", "_kept", "_stale", "cursor", "key", "on_entries", "on_reconcile", "trimmed_to")

    def __init__(
        self, inbox: Inbox, key: str, on_entries: Callable[[list[Entry]], None], on_reconcile: Callable[[], None]
    ) -> None:
        self._inbox = inbox
        self._kept: dict[bytes, None] = {}  # in the order of arrival
        self._stale: list[bytes] = []  # done, but behind one that is kept
        self.key = key
        self.on_entries = on_entries
        self.on_reconcile = on_reconcile
        self.cursor = b"0-0"
        self.trimmed_to = b"0-0"

    @property
    def kept(self) -> int:
        """How many notifications are not done."""
        return len(self._kept)

    def keep(self, entry_id: bytes) -> None:
        """This entry of the batch that was just handed over stays until it is done."""
        self._kept[entry_id] = None

    def handed_over(self, entries: Iterable[Entry]) -> None:
        """These were given to the taker: those that it has not kept are done, also behind one that is kept for long."""
        if self._kept:
            self._stale += [entry.id for entry in entries if entry.id not in self._kept]

    def done(self, entry_ids: Iterable[bytes]) -> None:
        """These are not needed any more. Twice: harmless."""
        for entry_id in entry_ids:
            if entry_id in self._kept:
                del self._kept[entry_id]
                self._stale.append(entry_id)
        self._inbox.trim_soon()

    def plan_trim(self) -> list[tuple[Arg, ...]]:
        """The commands that bring the stream to what is still needed; none if there is nothing to do."""
        oldest = next(iter(self._kept), None)
        low = _after(self.cursor) if oldest is None else oldest
        commands: list[tuple[Arg, ...]] = []
        if low != self.trimmed_to:
            commands.append(("XTRIM", self.key, "MINID", low))
            self.trimmed_to = low
        stale, self._stale = self._stale, []
        if oldest is not None:
            limit = _parse(oldest)
            behind = [entry_id for entry_id in stale if _parse(entry_id) > limit]
            commands += [
                ("XDEL", self.key, *behind[at : at + _DELETE_MAX]) for at in range(0, len(behind), _DELETE_MAX)
            ]
        return commands


@final
class Inbox:
    """All streams of one node. ``start`` opens the connection; you owe ``aclose``."""

    def __init__(self, redis: Redis, *, name: str, logger: Any = None) -> None:
        self._redis = redis
        self._name = name
        self._log = logger or structlog.get_logger("flotta.pool")
        self._mails: dict[str, Mail] = {}
        self._changed = asyncio.Event()
        self._link = redis.dedicated(name)
        self._task: asyncio.Task[None] | None = None
        self._blocked: asyncio.Future[Any] | None = None
        self._client_id: asyncio.Future[Any] | None = None
        self._interrupting: asyncio.Task[None] | None = None
        self._trimming: asyncio.TimerHandle | None = None
        self._connections = 0
        self._block_ms = _BLOCK_MS
        self.reads = 0

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"pool {self._name} inbox")

    async def aclose(self) -> None:
        """Stop reading and close the connection. Again: harmless."""
        if self._trimming is not None:
            self._trimming.cancel()
        for task in (self._task, self._interrupting):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        await self._link.aclose(drain_s=0)

    def open(self, key: str, on_entries: Callable[[list[Entry]], None], on_reconcile: Callable[[], None]) -> Mail:
        """Read the stream ``key`` from its beginning, too."""
        mail = self._mails[key] = Mail(self, key, on_entries, on_reconcile)
        self._interrupt()
        return mail

    def close(self, mail: Mail) -> None:
        """Do not read that stream any more. One that is not read: no change."""
        if self._mails.get(mail.key) is mail:
            del self._mails[mail.key]

    def trim_soon(self) -> None:
        """Something is done: trim in a moment, once for all that is done until then."""
        if self._trimming is None:
            self._trimming = asyncio.get_running_loop().call_later(_TRIM_PERIOD_S, self._trim)

    def trim_now(self) -> None:
        """Trim at once, for instance because the worker leaves."""
        if self._trimming is not None:
            self._trimming.cancel()
        self._trim()

    # --- reading ------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Let the blocking read begin anew, with the streams that there are now."""
        self._changed.set()
        if self._interrupting is None and self._blocked is not None and self._client_id is not None:
            ending = unblock(self._redis.link, self._client_id, self._blocked)
            self._interrupting = asyncio.get_running_loop().create_task(ending, name=f"pool {self._name} unblock")
            self._interrupting.add_done_callback(self._interrupted)

    def _interrupted(self, _: asyncio.Task[None]) -> None:
        self._interrupting = None

    async def _run(self) -> None:
        pause_s = _RETRY_MIN_S
        while True:
            try:
                await self._read()
                pause_s = _RETRY_MIN_S
            except RedisError as error:
                self._block_ms = 1  # the first read of a new connection returns at once, so that it is noticed
                if error.outcome is Outcome.APP:
                    self._log.error("a pool's inbox cannot be read", inbox=self._name, error=str(error))
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
                pause_s = min(2 * pause_s, _RETRY_MAX_S)

    async def _read(self) -> None:
        if not self._mails:
            self._changed.clear()
            await self._changed.wait()
        reply = await self._block()
        self.reads += 1
        self._notice_reconnect()
        for key, raw in (reply or {}).items():
            mail = self._mails.get(key.decode())
            if mail is not None and raw:
                mail.cursor = raw[-1][0]
                entries = [Entry(*entry) for entry in raw]
                try:
                    mail.on_entries(entries)
                except Exception:  # noqa: BLE001 - our bug: the other streams go on, and the records heal this
                    self._log.exception("entries of a pool's inbox were not taken", inbox=mail.key)
                    mail.on_reconcile()
                mail.handed_over(entries)
                self.trim_soon()

    async def _block(self) -> Any:
        link = self._link
        cursors = {mail.key: mail.cursor for mail in self._mails.values()}
        self._client_id = asyncio.ensure_future(link.call("CLIENT", "ID"))
        self._client_id.add_done_callback(_retrieve)
        words: tuple[Arg, ...] = (
            "XREAD",
            "COUNT",
            _COUNT,
            "BLOCK",
            self._block_ms,
            "STREAMS",
            *cursors,
            *cursors.values(),
        )
        self._block_ms = _BLOCK_MS
        self._blocked = asyncio.ensure_future(
            link.call(*words, timeout_s=_BLOCK_MS / 1000 + link.options.command_timeout_s)
        )
        try:
            return await self._blocked
        finally:
            self._blocked = None

    def _notice_reconnect(self) -> None:
        """Another connection than before: what was rung meanwhile may have been lost with the server's memory."""
        connections = self._link.stats.connections
        if self._connections not in (0, connections):
            for mail in tuple(self._mails.values()):
                mail.on_reconcile()
        self._connections = connections

    # --- trimming -----------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        self._trimming = None
        for mail in self._mails.values():
            for command in mail.plan_trim():
                with contextlib.suppress(FlottaError):  # not connected: the next round trims as far
                    asyncio.ensure_future(self._redis.link.call(*command)).add_done_callback(_retrieve)


def _parse(entry_id: bytes) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition(b"-")
    return int(ms), int(sequence)


def _after(entry_id: bytes) -> bytes:
    ms, sequence = _parse(entry_id)
    return b"%d-%d" % (ms, sequence + 1)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        error = future.exception()
        assert error is None or isinstance(error, RedisError | CommandError | FlottaError)
