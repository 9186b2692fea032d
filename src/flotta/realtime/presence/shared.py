"""The registry of servers that share a Redis.

Each instance holds a lease and writes its own sockets under it; whoever finds the lease of another ended deletes that
one's sockets, record by record, and tells every watcher of each exactly once (the scripts do both in one step).

Invariants:

- a record lies under the instance that holds the socket, and ends with its lease at the latest;
- a beat takes a quarter of ``ttl_s`` and a lease three: what a killed instance left is gone within ``ttl_s``;
- an instance whose records were taken away (it hung for too long, Redis lost its data, a replica took Redis' place)
  learns it from its next beat, or from the new connection, and writes all of them again;
- while Redis is away nobody waits for it: an entry is `Entered.UNSURE` and is written when Redis is back.

If Redis itself was away, no instance is judged by that time (see ``lua/beat.lua``).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, final

from flotta.errors import Closed, RedisError
from flotta.realtime.presence._scripts import BEAT, ENTER, LEAVE, ONLINE, REAP, REVOKE, SYNC, UPDATE, load_all
from flotta.realtime.presence.ears import Ears
from flotta.realtime.presence.records import Kick, Online, read_record, write_gap, write_kick, write_record
from flotta.realtime.presence.registry import Entered, Entry, RegistryStats, Told, batched
from flotta.redis import Redis

__all__ = ["SharedRegistry"]

BATCH: Final = 250
"""Records per script: short enough (about a millisecond) that nobody waits behind it."""
RETRY_S: Final = 1.0
CLOSE_TIMEOUT_S: Final = 3.0
RELEASE_S: Final = 2.0
"""How long another instance may take to write down what has gone there."""


@final
class SharedRegistry:
    """See the module, and `Registry`.

    Args:
        prefix: before every key and channel; it holds the hash tag.
        instance: what other people see as the server's id; the lease has a name of its own.
        keeps: entries are written down. False: only revocations are.
    """

    def __init__(self, redis: Redis, *, prefix: str, instance: str, keeps: bool, ttl_s: float, logger: Any) -> None:
        self._redis = redis
        self._prefix = prefix
        self._keys = (f"{prefix}leases",)
        self._me = f"{instance}-{secrets.token_hex(6)}"
        self._keeps = keeps
        self._beat_s = ttl_s / 4
        self._lease_ms = round(ttl_s * 750)
        self._silence_ms = round(ttl_s * 375)
        self._log = logger
        self._wanted: dict[str, Entry] = {}
        self._entering: set[str] = set()
        self._leaving: dict[tuple[str, str], None] = {}  # (socket id, user), in the order of their going
        self._released: dict[str, tuple[str, asyncio.TimerHandle]] = {}
        """Users, by socket id, that have gone on elsewhere and may not be written down there yet."""
        self._updating: set[str] = set()
        self._writing = 0
        self._has_work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ears: Ears | None = None
        self._epoch: bytes | None = None
        """Of the data that holds everything of this instance."""
        self._connections = -1
        self._away = False
        self._reaped = self._renewed = self._lost = 0

    # --- life ---

    async def start(self, told: Told) -> None:
        """Take a lease and hear of revocations."""
        self._ears = Ears(self._redis, self._prefix, told, me=self._me, revoke=self.revoke, logger=self._log)
        await self._ears.listen_to_control()
        if self._keeps:
            await load_all(self._redis.link)
            await self._beat()
            self._tasks = [
                asyncio.create_task(self._keep_beating(), name="presence beat"),
                asyncio.create_task(self._keep_writing(), name="presence writer"),
            ]

    async def aclose(self) -> None:
        """Delete every own entry and stop."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wanted.clear()
        for sid in list(self._released):
            self._take_back(sid)
        if tasks and self._redis.link.connected:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._reap(self._me, own=True)
            except (TimeoutError, RedisError, Closed):
                self._log.warning("presence could not be taken back; it ends with the lease", lease_ms=self._lease_ms)
        if self._ears is not None:
            await self._ears.aclose()

    # --- entries ---

    async def enter(self, entry: Entry, *, issued_at: float, connections_max: int | None) -> Entered:
        """Ask Redis, or nobody while it is away. What this process has heard of needs no asking."""
        sid, user = entry.online.socket_id, entry.online.user
        if self._heard_revoked(user, issued_at):
            return Entered.REVOKED
        self._want(entry)
        if not self._redis.link.connected:
            return self._unsure(entry, issued_at)
        self._entering.add(sid)
        args = (
            self._me, entry.connection, user, sid, write_record(entry.online), connections_max or 0,
            round(issued_at * 1000), self._lease_ms, int(self._keeps),
        )  # fmt: skip
        try:
            answer = Entered((await ENTER(self._redis.link, keys=self._keys, args=args)).decode())
        except RedisError:
            return self._unsure(entry, issued_at)
        finally:
            self._entering.discard(sid)
        self._settle(entry, answer)
        return answer

    def _settle(self, entry: Entry, answer: Entered) -> None:
        if answer is not Entered.ENTERED or not self._keeps:
            self._unwant(entry)
        elif not self._is_wanted(entry):  # it left meanwhile, and that may have been written first
            self._leaving[entry.online.socket_id, entry.online.user] = None
            self._has_work.set()

    def _want(self, entry: Entry) -> None:
        self._take_back(entry.online.socket_id)
        self._wanted[entry.online.socket_id] = entry
        self._leaving.pop((entry.online.socket_id, entry.online.user), None)  # it went and came before that was written

    def _unwant(self, entry: Entry) -> None:
        if self._is_wanted(entry):
            del self._wanted[entry.online.socket_id]
            self._updating.discard(entry.online.socket_id)

    def _is_wanted(self, entry: Entry) -> bool:
        """It has not left meanwhile, nor become another user's."""
        now = self._wanted.get(entry.online.socket_id)
        return now is not None and now.online.user == entry.online.user

    def _heard_revoked(self, user: str, issued_at: float) -> bool:
        return self._ears is not None and self._ears.revocations.covers(user, issued_at, time.time())

    def _unsure(self, entry: Entry, issued_at: float) -> Entered:
        self._lost += 1
        if self._ears is not None:
            self._ears.check_soon()
        if self._heard_revoked(entry.online.user, issued_at):
            self._unwant(entry)
            return Entered.REVOKED
        if not self._keeps:
            self._unwant(entry)
        self._connections = -1  # the next beat writes everything
        return Entered.UNSURE

    def restore(self, entry: Entry) -> None:
        """Write it with the next batch."""
        if self._keeps:
            self._want(entry)
            self._updating.add(entry.online.socket_id)
            self._has_work.set()

    def leave(self, sid: str) -> None:
        """Delete it with the next batch."""
        entry = self._wanted.pop(sid, None)
        user = self._take_back(sid) if entry is None else entry.online.user
        if user is not None:
            self._updating.discard(sid)
            self._leaving[sid, user] = None
            self._has_work.set()

    def release(self, sid: str) -> None:
        """Delete it if the other instance has not taken it by then: deleted at once it would be gone before."""
        entry = self._wanted.pop(sid, None)
        if entry is not None:
            self._updating.discard(sid)
            timer = asyncio.get_running_loop().call_later(RELEASE_S, self.leave, sid)
            self._released[sid] = entry.online.user, timer

    def _take_back(self, sid: str) -> str | None:
        """The user that a socket had when it went elsewhere, if that is not settled yet."""
        user, timer = self._released.pop(sid, (None, None))
        if timer is not None:
            timer.cancel()
        return user

    def update(self, entry: Entry) -> None:
        """Write it with the next batch; only the latest of several counts."""
        if entry.online.socket_id in self._wanted:
            self._wanted[entry.online.socket_id] = entry
            self._updating.add(entry.online.socket_id)
            self._has_work.set()

    # --- writing ---

    async def _keep_writing(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            try:
                while self._leaving or self._updating:
                    await self._write_some()
            except Closed:
                return  # the beat says it
            except Exception as error:  # noqa: BLE001 - our bug, but what comes after it must be written
                if not isinstance(error, RedisError):
                    self._log.exception("writing presence failed")
                self._lost += 1
                self._connections = -1  # the next beat finds out what is missing
                await asyncio.sleep(RETRY_S)
                self._has_work.set()

    async def _write_some(self) -> None:
        leaving = list(itertools.islice(self._leaving, BATCH))
        updating = [self._wanted[sid] for sid in itertools.islice(self._updating, BATCH)]
        if leaving:
            await self._delete(leaving)
            for gone in leaving:
                self._leaving.pop(gone, None)
        for entry in updating:
            self._updating.discard(entry.online.socket_id)
        self._writing = len(updating)
        try:
            calls = [self._update(entry) for entry in updating]
            for failed in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(failed, BaseException):
                    raise failed
        finally:
            self._writing = 0

    async def _update(self, entry: Entry) -> None:
        """Also what is new, or was another instance's."""
        try:
            if not await UPDATE(self._redis.link, keys=self._keys, args=(self._me, *_row(entry))):
                await self._put([entry], "take")
        except RedisError:
            if entry.online.socket_id in self._wanted:
                self._updating.add(entry.online.socket_id)
            raise

    async def _delete(self, gone: Iterable[tuple[str, str]]) -> None:
        args = [word for sid, user in gone for word in (user, sid)]
        await LEAVE(self._redis.link, keys=self._keys, args=(self._me, *args))

    async def _put(self, entries: Sequence[Entry], how: str) -> None:
        args = [word for entry in entries for word in _row(entry)]
        await SYNC(self._redis.link, keys=self._keys, args=(self._me, self._lease_ms, how, self._epoch or b"", *args))
        gone = {(e.online.socket_id, e.online.user): None for e in entries if not self._is_wanted(e)}
        if gone:  # they left while they were written
            self._leaving |= gone
            self._has_work.set()

    # --- the lease ---

    async def _keep_beating(self) -> None:
        while True:
            # Jitter keeps instances that began together from beating in step.
            pause_s = self._beat_s * random.uniform(0.8, 1.0)  # noqa: S311 - no secret
            await asyncio.sleep(min(pause_s, RETRY_S) if self._away else pause_s)
            try:
                await self._beat()
            except RedisError as error:
                if not self._away:
                    self._log.warning("presence is not renewed until Redis is back", reason=str(error))
                self._away = True
            except Closed:  # whoever gave the Redis has closed it first
                self._log.warning("the Redis was closed before the server", what="presence", instance=self._me)
                return
            except Exception:  # noqa: BLE001 - our bug, but an instance that does not beat counts as dead
                self._log.exception("renewing presence failed")
            else:
                self._away = False

    async def _beat(self) -> None:
        connections, moving = self._redis.link.stats.connections, self._moving
        args = (self._me, self._lease_ms, self._silence_ms, secrets.token_hex(8))
        epoch, had, count, *dead = await BEAT(self._redis.link, keys=self._keys, args=args)
        is_first, is_other = self._epoch is None, self._epoch not in (None, epoch)
        doubtful = abs(count - len(self._wanted)) > max(moving, self._moving)
        if is_other and self._ears is not None:
            self._ears.tell_gap()
            await self._ears.give_back()
        if not is_first and (is_other or not had or doubtful or connections != self._connections):
            await self._renew(quiet=is_other)
        self._epoch, self._connections = epoch, connections
        for instance in dead:
            if instance.decode() != self._me:
                await self._reap(instance.decode(), own=False)

    @property
    def _moving(self) -> int:
        underway = len(self._entering) + len(self._leaving) + len(self._updating) + self._writing
        return underway + len(self._released)

    async def _renew(self, *, quiet: bool) -> None:
        """Make Redis have exactly the own entries."""
        self._renewed += 1
        there = await self._redis.link.call("HGETALL", f"{self._prefix}of:{self._me}")
        found = {sid.decode(): user.decode() for sid, user in there.items()}
        kept = self._wanted.keys() | self._entering | self._released.keys()
        for batch in batched([(sid, user) for sid, user in found.items() if sid not in kept], BATCH):
            await self._delete(batch)
        here = [entry for sid, entry in self._wanted.items() if sid not in self._entering]
        for entries in batched(here, BATCH):
            await self._put(entries, "quiet" if quiet else "")
        if quiet and here:  # whoever has looked already did not find them
            await self._redis.link.call("PUBLISH", f"{self._prefix}changes", write_gap())

    async def _reap(self, instance: str, *, own: bool) -> None:
        """Clear away what an instance has left. Several may do it at once: each record goes once."""
        at: bytes | None = b"0"
        while at is not None:
            at = await REAP(self._redis.link, keys=self._keys, args=(instance, BATCH, int(own), at))
        if not own:
            self._reaped += 1
            self._log.warning("an instance has died: its people are offline", instance=instance)

    # --- revocations ---

    async def revoke(self, user: str, until_s: float, keep_s: float) -> None:
        """Write it, which tells every instance, this one too."""
        args = (user, round(until_s * 1000), round(keep_s * 1000))
        await REVOKE(self._redis.link, keys=self._keys, args=args)

    async def is_revoked(self, user: str, issued_at: float) -> bool:
        """Ask Redis. While it is away this raises, and everybody who is here then is asked about when it is back."""
        if self._heard_revoked(user, issued_at):
            return True
        try:
            until_ms = await self._redis.link.call("GET", f"{self._prefix}revoked:{user}")
        except RedisError:
            if self._ears is not None:
                self._ears.check_soon()
            raise
        return until_ms is not None and int(until_ms) >= round(issued_at * 1000)

    async def kick(self, user: str, *, close: bool, told: Collection[str]) -> None:
        """Tell the others, if Redis is there."""
        try:
            kick = write_kick(Kick(self._me, user, close, list(told)))
            await self._redis.link.call("PUBLISH", f"{self._prefix}control", kick)
        except RedisError as error:
            self._lost += 1
            self._log.warning("a sign-out did not reach the other instances", reason=str(error))

    # --- reading ---

    async def watch(self) -> None:
        """Subscribe to the changes."""
        assert self._ears is not None, "used before start"
        await self._ears.listen_to_changes()

    async def online(self, users: Sequence[str]) -> list[list[Online]]:
        """One round trip, whatever the number of users."""
        if not users:
            return []
        answer = await ONLINE(self._redis.link, keys=self._keys, args=tuple(users))
        return [[read_record(record) for record in records] for records in answer]

    async def users(self, after: str, count: int) -> list[str]:
        """By the bytes of their names."""
        begin = b"(" + after.encode() if after else b"-"
        names = await self._redis.link.call("ZRANGEBYLEX", f"{self._prefix}users", begin, "+", "LIMIT", 0, count)
        return [name.decode() for name in names]

    async def users_count(self) -> int:
        """Those of an instance that died count until it has been cleared away."""
        return int(await self._redis.link.call("ZCARD", f"{self._prefix}users"))

    @property
    def stats(self) -> RegistryStats:
        """Counters."""
        return RegistryStats(
            entries=len(self._wanted), waiting=self._moving, reaped=self._reaped, renewed=self._renewed, lost=self._lost
        )


def _row(entry: Entry) -> tuple[str, str, str, bytes]:
    return entry.connection, entry.online.user, entry.online.socket_id, write_record(entry.online)
