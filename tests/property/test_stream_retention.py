"""Laws of trimming, held against a deliberately dumb model on a real server: what some group needs always stays."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.streaming.scripts import TRIM

MACRO_NODE = 5  # entries per node of a stream, set below: what approximate trimming may leave over


@dataclasses.dataclass
class Model:
    """All events ever added, by number, and for each group what it has read and not acked. Remembers, never trims."""

    added: int = 0
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    pending: dict[str, set[int]] = dataclasses.field(default_factory=dict)

    def needed(self) -> set[int]:
        """What must still be stored."""
        unread = {n for read in self.read.values() for n in range(read + 1, self.added + 1)}
        return unread.union(*self.pending.values()) if self.pending else unread


GROUPS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40)),
        st.tuples(st.just("group"), GROUPS, st.booleans()),
        st.tuples(st.just("read"), GROUPS, st.integers(1, 60)),
        st.tuples(st.just("ack"), GROUPS, st.integers(1, 60), st.booleans()),
        st.tuples(st.just("leave"), GROUPS),
        st.tuples(st.just("trim"), st.integers(1, 30)),
    ),
    min_size=5,
    max_size=40,
)


@pytest.fixture(scope="module")
def run() -> Any:
    """Runs work on a server of its own with small nodes, so that small numbers meet every case."""
    with EmbeddedRedis() as server, asyncio.Runner() as runner:
        redis = runner.run(Redis.from_url(server.url).connect())
        runner.run(redis.config_set("stream-node-max-entries", MACRO_NODE))
        yield lambda work: runner.run(work(redis))
        runner.run(redis.aclose())


class Machine:
    """Does each step on the server and in the model."""

    def __init__(self, redis: Redis, key: str) -> None:
        self.call = redis.link.call
        self.redis = redis
        self.key = key
        self.model = Model()

    async def add(self, count: int) -> None:
        await self.redis.link.call_many(
            [("XADD", self.key, f"{self.model.added + n}-0", "n", "n", "p", b"") for n in range(1, count + 1)]
        )
        self.model.added += count

    async def group(self, name: str, from_oldest: bool) -> None:
        if name in self.model.read or not self.model.added:
            return
        await self.call("XGROUP", "CREATE", self.key, name, "0" if from_oldest else "$")
        stored = await self.stored()
        first = stored[0] if stored else self.model.added + 1
        self.model.read[name] = first - 1 if from_oldest else self.model.added
        self.model.pending[name] = set()

    async def read(self, name: str, count: int) -> None:
        if name not in self.model.read:
            return
        await self.call("XREADGROUP", "GROUP", name, "me", "COUNT", count, "STREAMS", self.key, ">")
        before = self.model.read[name]
        after = min(self.model.added, before + count)
        self.model.read[name] = after
        self.model.pending[name] |= set(range(before + 1, after + 1))

    async def ack(self, name: str, count: int, every: bool) -> None:
        chosen = sorted(self.model.pending.get(name, ()))[:: 1 if every else 2][:count]
        if chosen:
            await self.call("XACK", self.key, name, *(f"{n}-0" for n in chosen))
            self.model.pending[name] -= set(chosen)

    async def leave(self, name: str) -> None:
        if self.model.read.pop(name, None) is not None:
            del self.model.pending[name]
            await self.call("XGROUP", "DESTROY", self.key, name)

    async def trim(self, maxlen: int) -> None:
        before = await self.stored()
        reply = await TRIM(self.redis.link, keys=[self.key], args=[maxlen, 1_000_000, "0"])
        after = await self.stored()
        needed = self.model.needed()
        assert needed <= set(after), "dropped what a group still needs"
        assert set(range(self.model.added - min(maxlen, len(before)) + 1, self.model.added + 1)) <= set(after)
        assert after == before[len(before) - len(after) :], "only the oldest go"
        lowest = min(needed, default=self.model.added)
        keep_at_least = max(maxlen, self.model.added - lowest + 1 if self.model.read else 0)
        assert len(after) <= keep_at_least + MACRO_NODE
        assert reply == [len(after), len(before) - len(after), 0]

    async def stored(self) -> list[int]:
        return [int(raw_id.split(b"-")[0]) for raw_id, _ in await self.call("XRANGE", self.key, "-", "+")]


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_trimming_keeps_what_some_group_needs_and_the_newest(run: Any, steps: list[tuple[Any, ...]]) -> None:
    async def work(redis: Redis) -> None:
        machine = Machine(redis, "model")
        await redis.link.call("DEL", machine.key)
        for name, *arguments in steps:
            await getattr(machine, name)(*arguments)
        await machine.trim(1)

    run(work)


@settings(max_examples=100, deadline=None)
@given(
    added=st.integers(1, 150),
    read=st.integers(0, 150),
    acked=st.integers(0, 150),
    maxlen=st.integers(1, 30),
    room=st.integers(1, 50),
    drop=st.booleans(),
)
def test_the_limit_is_exact_and_counts_only_what_was_needed(
    run: Any, added: int, read: int, acked: int, maxlen: int, room: int, drop: bool
) -> None:
    async def work(redis: Redis) -> None:
        machine = Machine(redis, "limit")
        await redis.link.call("DEL", machine.key)
        await machine.add(added)
        await machine.group("a", from_oldest=True)
        await machine.read("a", read or 1)
        done = list(range(1, min(acked, read, added) + 1))
        if done:
            await redis.link.call("XACK", machine.key, "a", *(f"{n}-0" for n in done))
        oldest_needed = len(done) + 1
        needed = added - oldest_needed + 1
        backlog_max = maxlen + room
        length, trimmed, dropped = await TRIM(
            redis.link, keys=[machine.key], args=[maxlen, backlog_max, "1" if drop else "0"]
        )
        stored = await machine.stored()
        assert len(stored) == length == added - trimmed - dropped
        if drop:
            assert length <= max(backlog_max, maxlen)
            # One more than needed may count: the last delivered event itself is kept, too.
            assert max(0, needed - backlog_max) <= dropped <= max(0, needed + 1 - backlog_max)
        else:
            assert dropped == 0
            assert set(range(oldest_needed, added + 1)) <= set(stored)
            if length >= backlog_max:
                assert needed + 1 >= length, "full only if the groups need all of it"

    run(work)
