"""Keeps a replica equal to its hash: listens, loads, notices gaps and lost data, loads again.

Owns the subscription and one task. Invariants: the subscription is confirmed before the first snapshot is asked for, so
every write is in the snapshot or announced after it; what cannot be explained makes the replica stale at once and ends
in a snapshot; no failure ends the task, each is counted and tried again after a jittered pause; no read is held up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, final

from flotta.errors import Closed, CommandError, RedisError, WireError
from flotta.redis import Redis
from flotta.redis import Subscription as HubSubscription
from flotta.rmap.options import MapOptions
from flotta.rmap.replica import Phase, Replica, Snapshot, Verdict
from flotta.rmap.wire import (
    EVENT_OF,
    KIND_FIELD,
    REVISION_FIELD,
    Change,
    EventKind,
    content_key,
    decode_key,
    parse,
    stored_state,
    updates_channel,
)

__all__ = ["Follower", "FollowerStats"]

SETTLE_S = 1.0
"""After so long nothing that a snapshot held is still on its way. Too short costs a needless reload, nothing else."""
SOON_S = 0.5
"""When a doubt is looked into that most likely clears up by itself."""
TTL_MARGIN_S = 0.005
CHUNK_KEYS = 2_000
"""Keys of a snapshot taken over in one turn of the loop: well under a millisecond."""


@dataclass(slots=True)
class FollowerStats:
    """Counters since the start, for metrics."""

    applied: int = 0
    """Writes applied, one's own included."""
    gaps: int = 0
    """Messages that could not be explained: something was missed, or Redis lost its data."""
    junk: int = 0
    """Messages that were no messages of a map."""
    loads: int = 0
    """Snapshots read, the first one included."""
    load_failures: int = 0
    """Snapshots that could not be read."""
    lost: int = 0
    """Times that the subscription was lost."""


@final
class Follower:
    """A replica and what keeps it up. ``on_change(kind, revision, key)`` is called after every change (key "": any
    number of keys), ``on_loaded(number)`` after every snapshot."""

    def __init__(
        self,
        name: str,
        options: MapOptions,
        *,
        ttl_s: float | None,
        on_change: Callable[[EventKind, int, str], None],
        on_loaded: Callable[[int], None],
        logger: Any,
    ) -> None:
        self.replica = Replica(pending_max=options.pending_max)
        self.stats = FollowerStats()
        self.subscribed = False
        self.load_number = 0
        self._name = name
        self._options = options
        self._ttl_s = ttl_s
        self._on_change = on_change
        self._on_loaded = on_loaded
        self._logger = logger
        self._redis: Redis | None = None
        self._subscription: HubSubscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._inbox: list[bytes] = []
        self._load_wanted = False
        self._new_subscription = True
        self._load_not_before_s = 0.0
        self._failures_in_a_row = 0
        self._expires_at_s: float | None = None
        self._check_at_s: float | None = None

    @property
    def stale(self) -> bool:
        """Whether the replica may differ from the hash by more than what is on its way."""
        return not self.subscribed or self.replica.phase is not Phase.LIVE

    async def start(self, redis: Redis) -> None:
        """Subscribe and load. Raises RedisError, WireError; nothing is left behind then."""
        self._redis = redis
        self._new_subscription = True
        self._key = redis.key(content_key(self._name))
        self._subscription = await redis.hub.subscribe(redis.key(updates_channel(self._name)), self)
        self.subscribed = True
        try:
            await self._load(redis)
        except BaseException:
            await self.aclose()
            raise
        self._plan_check()
        self._task = asyncio.get_running_loop().create_task(self._keep(redis), name=f"flotta-map {self._name}")

    async def aclose(self) -> None:
        """Stop following; the replica stays as it is. Again: harmless."""
        task, self._task = self._task, None
        subscription, self._subscription = self._subscription, None
        self.apply_inbox()
        self.subscribed = False
        try:
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        finally:
            if subscription is not None:
                await subscription.aclose()

    # --- told by the hub, from the reading loop -----------------------------------------------------------------

    def on_message(self, channel: bytes, payload: bytes) -> None:  # noqa: ARG002 - one listener, one channel
        """Take one message. It is applied some turns of the loop later, with all that came meanwhile.

        So the writers whose replies came with it send their next commands first, and the server works on them while the
        messages are applied: 1.4 times the writes, for some microseconds until a change is visible.
        """
        self._inbox.append(payload)
        if len(self._inbox) == 1:
            # Turn 1: the writers run; 2: the map queues one command for them; 3: the link sends it; 4: messages.
            soon: Callable[..., object] = asyncio.get_running_loop().call_soon
            soon(soon, soon, soon, self.apply_inbox)

    def apply_inbox(self) -> None:
        """Apply what has come and waits for its turn."""
        inbox, self._inbox = self._inbox, []
        replica = self.replica
        for payload in inbox:
            if not replica.hear_own(payload):
                self._apply(payload)

    def write_own(self, first: int, keys: list[str], values: list[bytes]) -> bool:
        """Take sets of one's own as soon as their reply tells their revisions; False if they are not the next ones."""
        replica = self.replica
        if self._inbox and first > replica.revision + 1:
            self.apply_inbox()
        if not self.subscribed or not replica.write_own(first, keys, values):
            return False
        self.stats.applied += len(keys)
        self._start_ttl()
        return True

    def note_missing(self) -> None:
        """A message that must have come has not."""
        self.stats.gaps += 1
        self.want_load()

    def _start_ttl(self) -> None:
        if self._ttl_s is not None and self._expires_at_s is None:
            self._expect_expiry(self._ttl_s)

    def _apply(self, payload: bytes) -> None:
        try:
            change = parse(payload)
        except WireError:
            # It was no write, or the next write shows a gap; if there is no next one, the check does.
            self.stats.junk += 1
            self._check_soon()
            return
        verdict = self.replica.apply(change)
        if verdict is Verdict.APPLIED:
            self.stats.applied += 1
            self._on_change(EVENT_OF[change.op], change.revision, change.key)
            self._start_ttl()
        elif verdict is Verdict.RELOAD:
            self._note_gap(change)

    def on_lost(self) -> None:
        """Messages may be missed from here on; what is here stays readable."""
        self.apply_inbox()
        self.subscribed = False
        self.stats.lost += 1
        self.replica.distrust()

    def on_restored(self) -> None:
        """Subscribed again: what came in between must be read."""
        self.subscribed = True
        self._new_subscription = True
        self._load_not_before_s = 0.0
        self.want_load()

    def want_load(self) -> None:
        """Read the whole hash again; until then the replica is stale."""
        self.replica.distrust()
        self._load_wanted = True
        self._wake.set()

    def _note_gap(self, change: Change) -> None:
        self.stats.gaps += 1
        self._logger.info("map.gap", map=self._name, revision=self.replica.revision, heard=change.revision)
        self.want_load()

    # --- the task ------------------------------------------------------------------------------------------------

    async def _keep(self, redis: Redis) -> None:
        try:
            while True:
                await self._wait_for_cause()
                if self._load_is_due():
                    try:
                        await self._load(redis)
                    except (RedisError, WireError) as error:
                        self._note_failure(error)
                elif self._check_is_due():
                    await self._check(redis)
        except Closed:
            # Whoever gave the Redis has closed it first: nothing more will come, and it shows as stale.
            self.subscribed = False
            self._logger.warning("map.redis_closed", map=self._name)

    async def _wait_for_cause(self) -> None:
        times_s = [self._check_at_s] if self._check_at_s is not None else []
        if self._load_wanted and self.subscribed:
            times_s.append(self._load_not_before_s)
        due_s = max(0.0, min(times_s) - _now_s()) if times_s else None
        try:
            async with asyncio.timeout(due_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _load_is_due(self) -> bool:
        return self._load_wanted and self.subscribed and _now_s() >= self._load_not_before_s

    def _note_failure(self, error: Exception) -> None:
        """Doubling, jittered; cut short when the subscription comes back."""
        self._load_wanted = True
        self.replica.distrust()
        self.stats.load_failures += 1
        longest_s = self._options.reload_delay_min_s * 2 ** min(self._failures_in_a_row, 16)
        self._failures_in_a_row += 1
        pause_s = min(longest_s, self._options.reload_delay_max_s) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._load_not_before_s = _now_s() + pause_s
        self._logger.warning("map.load_failed", map=self._name, error=str(error), pause_s=round(pause_s, 3))

    async def _load(self, redis: Redis) -> None:
        self._load_wanted = False
        self.load_number += 1
        number = self.load_number
        self.apply_inbox()
        self.replica.begin_load(new_subscription=self._new_subscription)
        self._new_subscription = False
        fields, ttl_ms = await _read(redis, [("HGETALL", self._key), ("PTTL", self._key)], self._options.load_timeout_s)
        missed, again = self.replica.install(await _snapshot_of(fields))
        self.stats.loads += 1
        self._failures_in_a_row = 0
        self._load_not_before_s = _now_s() + self._options.reload_delay_min_s
        self._expect_expiry(ttl_ms / 1000 if ttl_ms > 0 else None)
        if again or self._load_wanted or not self.subscribed:
            self.replica.distrust()
            self._load_wanted = True
            self._wake.set()
        else:
            asyncio.get_running_loop().call_later(SETTLE_S, self._settle, number)
        self._on_loaded(number)
        if missed is not None and number > 1:
            self._on_change(missed, self.replica.revision, "")

    def _settle(self, number: int) -> None:
        self.apply_inbox()
        if number == self.load_number and self.subscribed and self.replica.settle() is Verdict.RELOAD:
            self.note_missing()

    # --- what no message tells -----------------------------------------------------------------------------------

    async def _check(self, redis: Redis) -> None:
        """Compare revisions, and learn when the hash will expire."""
        self._plan_check()
        if self.stale:
            return
        before = self.replica.revision
        commands = [("HGET", self._key, REVISION_FIELD), ("PTTL", self._key)]
        try:
            raw, ttl_ms = await _read(redis, commands, self._options.load_timeout_s)
            stored, _ = stored_state({REVISION_FIELD: raw or b""})
        except (RedisError, WireError):
            return  # the subscription tells whether Redis is gone; the next check is planned
        self._expect_expiry(ttl_ms / 1000 if ttl_ms > 0 else None)
        if stored < before:
            self.want_load()
        elif stored > self.replica.revision:
            # Its message is most likely on its way: only if it is still missing later, it is lost.
            asyncio.get_running_loop().call_later(SOON_S, self._expect_revision, stored, self.load_number)

    def _expect_revision(self, stored: int, load_number: int) -> None:
        if not self.stale and load_number == self.load_number and self.replica.revision < stored:
            self.note_missing()

    def _check_is_due(self) -> bool:
        return self._check_at_s is not None and _now_s() >= self._check_at_s

    def _plan_check(self) -> None:
        """The next check: at the interval, or when the hash expires if that is sooner."""
        times_s = []
        if self._options.check_interval_s is not None:
            jitter = random.uniform(0.75, 1.25)  # noqa: S311 - so that instances do not check together
            times_s.append(_now_s() + self._options.check_interval_s * jitter)
        if self._expires_at_s is not None:
            # While Redis is away the expiry may have passed without news: looking again at once would never end.
            times_s.append(max(self._expires_at_s + TTL_MARGIN_S, _now_s() + SOON_S))
        self._check_at_s = min(times_s, default=None)

    def _check_soon(self) -> None:
        if self._check_at_s is None or self._check_at_s > _now_s() + SOON_S:
            self._check_at_s = _now_s() + SOON_S
            self._wake.set()

    def _expect_expiry(self, ttl_s: float | None) -> None:
        self._expires_at_s = None if ttl_s is None else _now_s() + ttl_s
        self._plan_check()
        self._wake.set()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _read(redis: Redis, commands: list[tuple[Any, ...]], timeout_s: float) -> list[Any]:
    replies = await redis.link.call_many(commands, timeout_s=timeout_s)
    for reply in replies:
        if isinstance(reply, CommandError):
            raise reply
    return replies


async def _snapshot_of(fields: dict[bytes, bytes]) -> Snapshot:
    """A hash as read, made ready in turns so that a large one does not hold the loop."""
    revision, kind = stored_state(fields)
    content: dict[str, bytes] = {}
    items = iter(fields.items())
    while chunk := list(islice(items, CHUNK_KEYS)):
        content.update([(decode_key(key), value) for key, value in chunk])
        if len(chunk) == CHUNK_KEYS:
            await asyncio.sleep(0)
    for field in (REVISION_FIELD, KIND_FIELD):
        content.pop(decode_key(field), None)
    return Snapshot(content, revision, kind)
