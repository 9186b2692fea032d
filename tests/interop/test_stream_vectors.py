"""What Go Pulse was recorded to write, replayed without Go: our writers write the same, our readers read it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from flotta.redis import Redis
from flotta.streaming import Stream
from flotta.streaming.event import keepalive_map_name, lease_key, sinks_map_name, stream_key

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "stream-wire.json").read_text(encoding="utf-8")
)


def unboxed(text: str) -> bytes:
    return base64.b64decode(text)


@pytest.mark.parametrize("add", VECTORS["adds"], ids=lambda add: add["name"] or "nameless")
async def test_an_add_writes_the_fields_that_pulse_writes(add: dict[str, Any], unique: str, redis: Redis) -> None:
    async with await Stream.open(unique, redis) as stream:
        await stream.add(add["name"], unboxed(add["payload"]), topic=add["topic"] or None)
        ((_, fields),) = await redis.link.call("XRANGE", stream.key, "-", "+")
    assert fields == [unboxed(field) for field in add["fields"]]


async def test_pulses_entries_are_read_as_they_were_added(unique: str, redis: Redis) -> None:
    async with await Stream.open(unique, redis) as stream:
        for add in VECTORS["adds"]:
            await redis.link.call("XADD", stream.key, "*", *(unboxed(field) for field in add["fields"]))
        async with stream.reader(start="oldest") as reader, stream.sink("k", start="oldest") as sink:
            for consumer in (reader, sink):
                for add in VECTORS["adds"]:
                    event = await anext(consumer)
                    assert (event.name, event.payload) == (add["name"], unboxed(add["payload"]))
                    assert event.topic == (add["topic"] or None)


def test_names_are_pulses() -> None:
    name, sink, keys = VECTORS["stream"], VECTORS["sink_name"], VECTORS["sink"]["keys"]
    assert VECTORS["sink"]["lease_key"] == lease_key(sink)
    assert (
        sorted(
            [
                stream_key(name),
                lease_key(sink),
                f"map:{sinks_map_name(name)}:content",
                f"map:{keepalive_map_name(sink)}:content",
            ]
        )
        == keys
    )


async def test_a_sink_leaves_on_the_server_what_pulses_sink_leaves(unique: str, redis: Redis) -> None:
    recorded = VECTORS["sink"]
    async with await Stream.open(unique, redis) as stream, stream.sink(unique, start="oldest") as sink:
        await stream.add("n", b"")
        await anext(sink)
        sinks = await redis.link.call("HGETALL", f"map:{sinks_map_name(unique)}:content")
        keepalive = await redis.link.call("HGETALL", f"map:{keepalive_map_name(unique)}:content")
        assert json.loads(sinks[unique.encode()]) == [sink.consumer]
        assert set(keepalive) == {b"=rev", b"=kind", sink.consumer.encode()}
        assert len(keepalive[sink.consumer.encode()]) == len(recorded["keepalive_map"][recorded["consumer"]])
    assert json.loads(recorded["sinks_map"][VECTORS["sink_name"]]) == [recorded["consumer"]]
    assert len(sink.consumer) == len(recorded["consumer"]) == 26
    assert recorded["group"] == VECTORS["sink_name"]
