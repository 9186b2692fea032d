"""The replicated map: reads from a local copy, writes as one atomic step in Redis.

Owns the public interface and the life of one map. Invariants: a read is a dict lookup and never waits, also while Redis
is gone; every write is one script that changes value and revision and announces both; a map that was given a URL closes
what it opened, one that was given a Redis leaves it open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Self, TypeVar, cast, final, overload

import structlog

from flotta.errors import Closed, CommandError, NotAnInteger, NotStarted, WireError
from flotta.redis import Link, Redis, Script
from flotta.rmap import scripts
from flotta.rmap.arrival import Arrivals
from flotta.rmap.batch import SetBatch
from flotta.rmap.codec import TEXT, Codec
from flotta.rmap.events import Board, Events, Watch
from flotta.rmap.follower import Follower, FollowerStats
from flotta.rmap.options import MapOptions, check_ttl
from flotta.rmap.results import MISSING, Attempt, MapState, Removal, Values, encode_item, list_of
from flotta.rmap.wire import (
    EventKind,
    check_key,
    check_name,
    content_key,
    decode_key,
    parse_values,
    updates_channel,
)

__all__ = ["Map"]

V = TypeVar("V")
D = TypeVar("D")
W = TypeVar("W")


@final
class Map(Generic[V]):
    """A map of which every instance holds a copy. ``async with await Map.join("config", redis) as config: ...``.

    Options: ``codec`` turns values into bytes (default: text). ``ttl_s``: Redis forgets the whole map so many seconds
    after its first write, or with ``sliding`` after its last one; give every instance the same. ``options``: limits.

    When a write returns, this map holds it and all that was written before it by anyone, unless ``stale``. Values that
    are read are shared: do not change them in place. One event loop; no locks are needed. A write that is cancelled may
    still happen. Writes raise RedisError: NotApplied, AmbiguousOutcome, CommandError say what is known.
    """

    @overload
    def __init__(
        self: Map[str],
        name: str,
        *,
        codec: None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        codec: Codec[V] | None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        codec: Codec[V] | None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> None:
        self.name = check_name(name)
        self.options = options or MapOptions()
        self._codec: Codec[V] = codec if codec is not None else cast("Codec[V]", TEXT)
        self._ttl_ms = check_ttl(ttl_s, sliding=sliding)
        self._sliding = sliding
        self._values = Values(self._codec, name)
        self._decoded: dict[str, V] = {}
        self._board: Board[V] = Board()
        self._follower = Follower(
            name,
            self.options,
            ttl_s=ttl_s,
            on_change=self._on_change,
            on_loaded=self._on_loaded,
            logger=logger or structlog.get_logger("flotta.rmap"),
        )
        self._replica = self._follower.replica
        self._arrivals = Arrivals(name, self._follower)
        self._state = MapState.NEW
        self._life = asyncio.Lock()
        self._redis: Redis | None = None
        self._owns_redis = False
        self._script_head: tuple[str | int, ...] = ()
        self._batch = SetBatch(self._send_many, lambda args: self._run(scripts.SET_MANY, *args), self._on_written)

    # --- life ----------------------------------------------------------------------------------------------------

    @overload
    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        codec: None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> Map[str]: ...
    @overload
    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        codec: Codec[W],
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> Map[W]: ...
    @classmethod
    async def join(
        cls,
        name: str,
        redis: str | Redis,
        *,
        codec: Codec[Any] | None = None,
        ttl_s: float | None = None,
        sliding: bool = False,
        options: MapOptions | None = None,
        logger: Any = None,
    ) -> Map[Any]:
        """A map that has its content. You owe it ``aclose`` (``async with`` does it). Raises like ``start``."""
        joined: Map[Any] = cls(name, codec=codec, ttl_s=ttl_s, sliding=sliding, options=options, logger=logger)
        await joined.start(redis)
        return joined

    async def start(self, redis: str | Redis) -> None:
        """Subscribe and load the content. Started already: nothing happens.

        Raises RedisError if there is no connection or the hash cannot be read, WireError if the hash is no map, Closed.
        Failed or cancelled: nothing is left behind, start again.
        """
        async with self._life:
            if self._state is MapState.CLOSED:
                raise Closed(f"map {self.name!r}")
            if self._state is MapState.RUNNING:
                return
            own = isinstance(redis, str)
            client = Redis.from_url(redis) if isinstance(redis, str) else redis
            try:
                await client.connect()
                await self._follower.start(client)
            except BaseException:
                if own:
                    await client.aclose()
                raise
            self._redis, self._owns_redis = client, own
            self._hash = client.key(content_key(self.name))
            channel = client.key(updates_channel(self.name))
            self._script_head = (channel, self._ttl_ms, int(self._sliding))
            self._state = MapState.RUNNING

    async def aclose(self) -> None:
        """Stop following. Reads go on from the copy as it is; iterators end; writes raise Closed. Again: harmless."""
        async with self._life:
            if self._state is MapState.CLOSED:
                return
            self._batch.send()  # they were asked for before
            redis, self._redis = self._redis, None
            self._state = MapState.CLOSED
            self._board.close()
            self._arrivals.close()
            try:
                await self._follower.aclose()
            finally:
                if redis is not None and self._owns_redis:
                    await redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Map {self.name!r} {self._state.value} revision={self.revision} keys={len(self._replica.content)}>"

    @property
    def state(self) -> MapState:
        """Where it is in its life."""
        return self._state

    @property
    def stale(self) -> bool:
        """Whether writes may have been missed: Redis is gone, or the content is being read again. Reads go on."""
        return self._state is not MapState.RUNNING or self._follower.stale

    @property
    def revision(self) -> int:
        """The revision of the copy: how many writes the map has seen since Redis knows it."""
        return self._replica.revision

    @property
    def stats(self) -> FollowerStats:
        """Counters since the start."""
        return self._follower.stats

    # --- reads: local, never wait ----------------------------------------------------------------------------------

    @overload
    def get(self, key: str) -> V | None: ...
    @overload
    def get(self, key: str, default: D) -> V | D: ...
    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, or ``default``. Raises NotStarted, WireError if the codec cannot read it."""
        try:
            return self._decoded[key]
        except KeyError:
            return self._decode(key, default)

    def __getitem__(self, key: str) -> V:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return cast("V", value)

    def _decode(self, key: str, default: Any) -> Any:
        raw = self._content().get(key)
        if raw is None:
            return default
        value = self._decoded[key] = self._values.decode(raw, key)
        return value

    def _content(self) -> dict[str, bytes]:
        if self._state is MapState.NEW:
            raise NotStarted(f"map {self.name!r}", "await start(), or Map.join()")
        return self._replica.content

    def get_values(self, key: str) -> list[str] | None:
        """The items of a list value, None if there is no such key. Whatever the codec."""
        raw = self._content().get(key)
        return None if raw is None else parse_values(raw)

    def keys(self) -> list[str]:
        """The keys now, in no order."""
        return list(self._content())

    def items(self) -> list[tuple[str, V]]:
        """Keys and values now. Raises WireError."""
        return list(self.snapshot().items())

    def values(self) -> list[V]:
        """The values now. Raises WireError."""
        return list(self.snapshot().values())

    def snapshot(self) -> dict[str, V]:
        """A dict of its own of all that is here now. Raises WireError."""
        decoded = self._decoded
        for key, raw in self._content().items():
            if key not in decoded:
                decoded[key] = self._values.decode(raw, key)
        return decoded.copy()

    def __len__(self) -> int:
        return len(self._content())

    def __contains__(self, key: object) -> bool:
        return key in self._content()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    # --- being told ------------------------------------------------------------------------------------------------

    def subscribe(self) -> Events:
        """Coarse events from now on: an asynchronous iterator for one task. Writes made meanwhile fold into one event.

        After an outage it gives the strongest event that was missed. It ends when the map is closed.
        """
        self._content()
        return self._ended_if_closed(self._board.subscribe())

    def watch(self, key: str) -> Watch[V]:
        """The values of ``key``: the present one first, then each that differs; None: no value. For one task."""
        check_key(key)
        self._content()

        def read() -> bytes | None:
            return self._replica.content.get(key)

        return self._ended_if_closed(self._board.watch(key, Watch(read, lambda raw: self._values.decode(raw, key))))

    def _ended_if_closed(self, iterator: W) -> W:
        if self._state is MapState.CLOSED:
            self._board.close()
        return iterator

    async def refresh(self, *, timeout_s: float | None = None) -> None:
        """Read the whole map again: every write that was answered before the call is here after it.

        Raises MapTimeout after ``timeout_s`` seconds (default ``wait_timeout_s``), NotStarted, Closed.
        """
        self._link()
        limit_s = self.options.wait_timeout_s if timeout_s is None else timeout_s
        await self._arrivals.wait_for_load(limit_s, "the map could not be read again")

    def _on_change(self, kind: EventKind, revision: int, key: str) -> None:
        if key:
            self._decoded.pop(key, None)
        else:
            self._decoded = {}
        self._board.note(kind, revision, key)
        self._arrivals.reach(revision)

    def _on_written(self, first: int, keys: list[str], values: list[bytes]) -> None:
        if not self._follower.write_own(first, keys, values):
            return
        for key in keys:
            self._decoded.pop(key, None)
        self._board.note_sets(self._replica.revision, keys)
        self._arrivals.reach(self._replica.revision)

    def _on_loaded(self, number: int) -> None:
        self._arrivals.loaded(number)

    # --- writes: one atomic step each --------------------------------------------------------------------------------

    async def set(self, key: str, value: V) -> V | None:
        """Set ``key``; gives its previous value, None if it had none.

        Raises WireError if that cannot be read: the new one is set.
        """
        lowest = self._replica.revision + 1
        previous, revision = await self._set(key, value)
        if not lowest <= revision <= self._replica.revision:
            await self._arrivals.catch_up(lowest, revision)
        return self._values.previous(previous, key)

    async def set_and_wait(self, key: str, value: V, *, timeout_s: float | None = None) -> V | None:
        """Like ``set``, but it never returns before this map has the value, also while the map is stale.

        Raises MapTimeout if it is not here after ``timeout_s`` seconds (default ``wait_timeout_s``): it is in Redis.
        """
        lowest = self._replica.revision + 1
        previous, revision = await self._set(key, value)
        limit_s = self.options.wait_timeout_s if timeout_s is None else timeout_s
        otherwise = f"the new value of {key!r} is in Redis, but not here"
        await self._arrivals.wait_for(lowest, revision, limit_s, otherwise)
        return self._values.previous(previous, key)

    async def set_if_absent(self, key: str, value: V) -> bool:
        """Set ``key`` unless it has a value; gives whether it was set."""
        (done,) = await self._step(scripts.SET_IF_ABSENT, check_key(key), self._codec.encode(value))
        return bool(done)

    async def test_and_set(self, key: str, expected: V, value: V) -> Attempt[V]:
        """Set ``key`` to ``value`` if its value is ``expected``. A key without a value is never set."""
        raw = check_key(key)
        reply = await self._step(scripts.TEST_AND_SET, raw, self._expected(key, expected), self._codec.encode(value))
        return self._tested(reply, key)

    async def incr(self, key: str, delta: int = 1) -> int:
        """Add ``delta`` to the integer at ``key`` (none counts as 0); gives the sum. 64 bits, signed.

        Raises NotAnInteger if its value is no integer, CommandError if the sum does not fit.
        """
        if not isinstance(delta, int):
            raise TypeError(f"delta is an int, not {type(delta).__name__}")
        if not -(2**63) <= delta < 2**63:
            raise ValueError(f"delta {delta} does not fit into 64 bits")
        try:
            (total,) = await self._step(scripts.INCR, check_key(key), int(delta))
        except CommandError as error:
            if "not an integer" in error.text:
                raise NotAnInteger(self.name, key) from error
            raise
        return int(total)

    async def append_values(self, key: str, *items: str) -> list[str]:
        """Append ``items`` to the list at ``key``; gives the list. A value that is no list is split at its commas."""
        (stored,) = await self._step(scripts.APPEND_VALUES, check_key(key), *map(encode_item, items))
        return list_of(stored)

    async def append_unique_values(self, key: str, *items: str) -> list[str]:
        """Append those of ``items`` that the list at ``key`` lacks; gives the list."""
        (stored,) = await self._step(scripts.APPEND_UNIQUE_VALUES, check_key(key), *map(encode_item, items))
        return list_of(stored)

    async def remove_values(self, key: str, *items: str) -> Removal:
        """Remove every one of ``items`` from the list at ``key``. With its last item the key goes."""
        removed, stored = await self._step(scripts.REMOVE_VALUES, check_key(key), *map(encode_item, items))
        return Removal(bool(removed), list_of(stored))

    async def delete(self, key: str) -> V | None:
        """Delete ``key``; gives the value it had, None if none (then nothing is announced).

        Raises WireError if that value cannot be read: it is deleted.
        """
        (previous,) = await self._step(scripts.DELETE, check_key(key))
        return self._values.previous(previous, key)

    async def test_and_delete(self, key: str, expected: V) -> Attempt[V]:
        """Delete ``key`` if its value is ``expected``."""
        reply = await self._step(scripts.TEST_AND_DELETE, check_key(key), self._expected(key, expected))
        return self._tested(reply, key)

    async def reset(self) -> None:
        """Empty the map. Revisions go on."""
        await self._step(scripts.RESET, "reset")

    async def destroy(self) -> None:
        """Empty the map, and say that it is given up: Redis keeps its revision only. Joined maps stay usable."""
        await self._step(scripts.RESET, "destroy")

    async def test_and_reset(self, expected: Mapping[str, V]) -> bool:
        """Empty the map if every key of ``expected`` has its value; gives whether it did. Nothing expected: it does."""
        pairs: list[bytes] = []
        for key, value in expected.items():
            pairs += (check_key(key), self._expected(key, value))
        (done,) = await self._step(scripts.TEST_AND_RESET, *pairs)
        return bool(done)

    # --- how a write goes --------------------------------------------------------------------------------------------

    def _set(self, key: str, value: V) -> asyncio.Future[tuple[bytes | None, int]]:
        """Previous value and revision of a set that leaves with the others of this turn of the loop."""
        if self._redis is None:
            self._link()
        raw = check_key(key)
        # The name under which the message will come.
        return self._batch.add(key if key.isascii() else decode_key(raw), raw, self._codec.encode(value))

    async def _step(self, script: Script, *args: bytes | str | int) -> list[Any]:
        """Run a script that ends with ``finish``; gives its results once the copy holds what it saw."""
        known = self._replica.revision
        revision, made, *results = await self._run(script, *args)
        await self._arrivals.catch_up(known + made, int(revision))
        return cast("list[Any]", results)

    def _send_many(self, args: list[bytes]) -> asyncio.Future[list[Any]]:
        """Straight to the link: a task of its own would cost a turn. What raises here is for every set of the batch."""
        command = ("EVALSHA", scripts.SET_MANY.sha, 1, self._hash, *self._script_head, *args)
        return asyncio.ensure_future(self._link().call(*command))

    async def _run(self, script: Script, *args: bytes | str | int) -> Any:
        self._batch.send()  # what was asked for first is sent first
        link = self._link()
        try:
            # What Script does, without its turn: writes are what a busy map is measured by.
            return await link.call("EVALSHA", script.sha, 1, self._hash, *self._script_head, *args)
        except CommandError as error:
            if error.code != "NOSCRIPT":
                raise
        return await script(link, keys=(self._hash,), args=(*self._script_head, *args))

    def _link(self) -> Link:
        if self._redis is None:
            if self._state is MapState.CLOSED:
                raise Closed(f"map {self.name!r}")
            raise NotStarted(f"map {self.name!r}", "await start(), or Map.join()")
        return self._redis.link

    def _expected(self, key: str, expected: V) -> bytes:
        """The bytes that stand for ``expected`` in Redis: those that this map read, if they mean the same.

        Another program may write the same JSON with other spaces; Redis compares bytes.
        """
        raw = self._replica.content.get(key)
        encoded = self._codec.encode(expected)
        if raw is None or raw == encoded:
            return encoded
        try:
            return raw if self._codec.decode(raw) == expected else encoded
        except WireError:
            return encoded

    def _tested(self, reply: list[Any], key: str) -> Attempt[V]:
        done, previous = reply
        return Attempt(bool(done), self._values.previous(previous, key, done=bool(done)))
