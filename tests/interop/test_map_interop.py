"""One map, two languages: Flotta and the real Go Pulse on the same Redis, both ways, every operation.

What is compared: the replies, the hash byte for byte, the messages byte for byte, and the copies of both languages.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flotta.redis import Redis
from flotta.rmap import Map
from flotta.rmap.wire import decode_key
from interop.map_calls import EVERY_OPERATION, PYTHON, Call, Recorder, by_go, by_python
from interop.peer import GoPeer, build_failure, pack, require_peer, unpack

pytestmark = pytest.mark.interop
ROUNDS = 300
SEEDS = (1, 2, 3, 4)


@pytest.fixture
async def peer(valkey_url: str) -> AsyncIterator[GoPeer]:
    require_peer()
    async with GoPeer.start(valkey_url) as running:
        yield running


async def test_every_operation_does_the_same_in_both_languages(peer: GoPeer, redis: Redis, unique: str) -> None:
    """The same calls on two maps: replies, hashes and messages are equal after each."""
    ours, theirs = f"{unique}-python", f"{unique}-go"
    heard = {name: Recorder() for name in (ours, theirs)}
    for name, recorder in heard.items():
        await redis.hub.subscribe(f"map:{name}:updates", recorder)
    await peer.call("map.join", handle="m", name=theirs)
    async with await Map.join(ours, redis) as joined:
        for call in EVERY_OPERATION:
            assert await by_python(joined, call) == await by_go(peer, "m", call), call
            hashes = [await redis.link.call("HGETALL", f"map:{name}:content") for name in (ours, theirs)]
            assert hashes[0] == hashes[1], call
        # A message to each channel after all others: once both are here, all before them are.
        await joined.set("last", "1")
        await by_go(peer, "m", Call("set", "last", "1"))
        await joined.refresh()
        async with asyncio.timeout(5):
            while not all(r.messages and b"last" in r.messages[-1] for r in heard.values()):
                await asyncio.sleep(0)
    assert heard[ours].messages == heard[theirs].messages
    assert len(heard[ours].messages) > 20


async def go_content(peer: GoPeer) -> dict[str, bytes]:
    pairs = await peer.call("map.snapshot", handle="m")
    return {decode_key(_raw(key)): _raw(value) for key, value in pairs}


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def hash_content(redis: Redis, name: str) -> dict[str, bytes]:
    fields = await redis.link.call("HGETALL", f"map:{name}:content")
    return {decode_key(key): value for key, value in fields.items() if not key.startswith(b"=")}


async def settle(peer: GoPeer, joined: Map[Any], redis: Redis) -> None:
    """After this both copies have every write: each has seen a later one of its own."""
    await joined.set_and_wait("settled", "1")
    await peer.call("map.set_and_wait", handle="m", key="settled", value="2")
    async with asyncio.timeout(10):
        events = joined.subscribe()
        while joined.get("settled") != "2":
            await anext(events)


@pytest.mark.parametrize("writer", ["python", "go"])
async def test_each_side_sees_what_the_other_writes(writer: str, peer: GoPeer, redis: Redis, unique: str) -> None:
    await peer.call("map.join", handle="m", name=unique)
    async with await Map.join(unique, redis) as joined:
        for call in EVERY_OPERATION:
            await (by_python(joined, call) if writer == "python" else by_go(peer, "m", call))
        await settle(peer, joined, redis)
        stored = await hash_content(redis, unique)
        assert await go_content(peer) == stored
        assert dict(joined._replica.content) == stored
        assert joined.stats.gaps == 0
        assert joined.get_values("after") == (await peer.call("map.get_values", handle="m", key="after"))["values"]


async def test_a_later_joiner_of_either_language_finds_all(peer: GoPeer, redis: Redis, unique: str) -> None:
    binary = b"\xff\x00\xfe"
    await peer.call("map.join", handle="first", name=unique)
    await peer.call("map.set", handle="first", key=b"k\xff", value=binary)
    async with await Map.join(unique, redis) as joined:
        assert joined._replica.content == {"k\udcff": binary}
        await joined.set_and_wait("from", "python")
        assert await peer.call("map.join", handle="m", name=unique) == 2
        assert await go_content(peer) == joined._replica.content


async def test_subscribers_of_both_languages_hear_the_same(peer: GoPeer, redis: Redis, unique: str) -> None:
    await peer.call("map.join", handle="m", name=unique)
    await peer.call("map.subscribe", handle="m")
    async with await Map.join(unique, redis) as joined:
        events = joined.subscribe()
        for call, kind in (
            (Call("set", "a", "1"), "change"),
            (Call("delete", "a"), "delete"),
            (Call("destroy"), "reset"),
        ):
            for write in (lambda c=call: by_python(joined, c), lambda c=call: by_go(peer, "m", c)):
                if call.op == "delete":
                    await joined.set_and_wait("a", "again")
                    await asyncio.wait_for(anext(events), 5)
                    assert (await peer.event())["kind"] == "change"
                await write()
                assert (await asyncio.wait_for(anext(events), 5)).kind.name.lower() == kind
                assert (await peer.event())["kind"] == kind


def random_call(dice: random.Random) -> Call:
    """Any operation on few keys and values, so that they meet."""
    key, value, test = (
        dice.choice(choices) for choices in (["a", "b", "ü", "l"], ["1", "x,y", "", '["x"]'], ["1", "", "x"])
    )
    op = dice.choice([*PYTHON, "set", "set", "incr", "append_values"])
    if op in ("reset", "destroy", "test_and_reset") and dice.random() < 0.8:
        op = "set"  # else the map is empty most of the time
    items = tuple(dice.choice(["x", "y", "z,", "/ü"]) for _ in range(dice.randrange(4)))
    return Call(op, key, value, test, dice.randrange(-5, 6), items, ((key, test),))


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_writes_from_both_sides_end_equal(seed: int, peer: GoPeer, redis: Redis, unique: str) -> None:
    """Both languages write into one map at the same time; then hash, Go's copy and ours are one."""
    await peer.call("map.join", handle="m", name=unique)

    async def python_side(joined: Map[str], dice: random.Random) -> None:
        for _ in range(ROUNDS):
            await by_python(joined, random_call(dice))

    async def go_side(dice: random.Random) -> None:
        for _ in range(ROUNDS):
            await by_go(peer, "m", random_call(dice))

    async with await Map.join(unique, redis) as joined:
        await asyncio.gather(python_side(joined, random.Random(seed)), go_side(random.Random(-seed)))
        await settle(peer, joined, redis)
        stored = await hash_content(redis, unique)
        assert await go_content(peer) == stored, f"seed {seed}"
        assert dict(joined._replica.content) == stored, f"seed {seed}"
        assert joined.stats.gaps == joined.stats.junk == 0


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_writes_alone_give_the_same_replies(seed: int, peer: GoPeer, redis: Redis, unique: str) -> None:
    """The same sequence in each language, on a map of its own: replies and hashes are equal at every step."""
    await peer.call("map.join", handle="m", name=f"{unique}-go")
    dice = random.Random(seed)
    async with await Map.join(f"{unique}-python", redis) as joined:
        for _ in range(ROUNDS):
            call = random_call(dice)
            assert await by_python(joined, call) == await by_go(peer, "m", call), (seed, call)
        ours, theirs = [await redis.link.call("HGETALL", f"map:{unique}-{side}:content") for side in ("python", "go")]
        assert ours == theirs, seed


@pytest.mark.parametrize("sliding", [False, True])
async def test_a_ttl_set_in_either_language_is_the_same(sliding: bool, peer: GoPeer, redis: Redis, unique: str) -> None:
    await peer.call("map.join", handle="m", name=f"{unique}-go", ttl_ms=60_000, sliding=sliding)
    async with await Map.join(f"{unique}-python", redis, ttl_s=60, sliding=sliding) as joined:
        await joined.set("a", "1")
        await by_go(peer, "m", Call("set", "a", "1"))
        for name in (f"map:{unique}-{side}:content" for side in ("python", "go")):
            assert 55_000 < await redis.link.call("PTTL", name) <= 60_000
            await redis.link.call("PEXPIRE", name, 20_000)
        await joined.set("a", "2")
        await by_go(peer, "m", Call("set", "a", "2"))
        for name in (f"map:{unique}-{side}:content" for side in ("python", "go")):
            left_ms = await redis.link.call("PTTL", name)
            assert (left_ms > 55_000) == sliding


def test_the_line_protocol_carries_any_bytes() -> None:
    assert unpack(json.loads(json.dumps(pack([b"\xff", b"ok", "ü"])))) == [b"\xff", "ok", "ü"]


def test_a_module_that_the_index_refuses_is_told_in_one_line() -> None:
    refused = (
        "go: downloading example.org/m v1.0.0\n"
        "main.go:9:2: example.org/m@v1.0.0: reading https://index/m/@v/v1.0.0.zip: 403 Forbidden\n"
        "\tserver response: This module version is not available.\n"
        "map.go:9:2: example.org/m@v1.0.0: reading https://index/m/@v/v1.0.0.zip: 403 Forbidden\n"
    )
    told = build_failure(refused)
    assert told.count("403 Forbidden") == 1
    assert told.endswith("server response: This module version is not available.")
    assert build_failure("# peer\n./map.go:3:1: syntax error\n") == "go build: ./map.go:3:1: syntax error"
