"""What Go Pulse was recorded to do, replayed by Flotta: runs everywhere, without Go."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from flotta.redis import Redis
from flotta.rmap import Map
from flotta.rmap.wire import encode, parse
from interop.map_calls import Call, Recorder, by_python

STEPS = json.loads((Path(__file__).parent / "vectors" / "map-operations.json").read_text())["steps"]


def messages_of(step: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(message) for message in step["messages"]]


def call_of(step: dict[str, Any]) -> Call:
    fields = dict(step["call"])
    fields["items"] = tuple(fields["items"])
    fields["pairs"] = tuple((key, value) for key, value in fields["pairs"])
    return Call(**fields)


def test_every_recorded_message_is_read_and_written_byte_for_byte() -> None:
    recorded = [message for step in STEPS for message in messages_of(step)]
    assert len(recorded) > 20
    assert [encode(parse(message)) for message in recorded] == recorded


async def test_flotta_leaves_what_pulse_left_at_every_step(redis: Redis, unique: str) -> None:
    recorder = Recorder()
    await redis.hub.subscribe(f"map:{unique}:updates", recorder)
    async with await Map.join(unique, redis) as joined:
        for step in STEPS:
            reply = await by_python(joined, call_of(step))
            assert json.loads(json.dumps(reply)) == step["reply"], step["call"]
            stored = await redis.link.call("HGETALL", f"map:{unique}:content")
            expected = {base64.b64decode(key): base64.b64decode(value) for key, value in step["hash"]}
            assert stored == expected, step["call"]
    expected_messages = [message for step in STEPS for message in messages_of(step)]
    async with asyncio.timeout(5):
        while len(recorder.messages) < len(expected_messages):
            await asyncio.sleep(0)
    assert recorder.messages == expected_messages


async def test_a_copy_fed_with_the_recorded_messages_is_the_recorded_hash(redis: Redis, unique: str) -> None:
    async with await Map.join(unique, redis) as joined:
        for step in STEPS:
            for message in messages_of(step):
                await redis.link.call("PUBLISH", f"map:{unique}:updates", message)
        last = parse([message for step in STEPS for message in messages_of(step)][-1])
        events = joined.subscribe()
        async with asyncio.timeout(5):
            while joined.revision < last.revision:
                await anext(events)
        expected = {base64.b64decode(key).decode(): base64.b64decode(value) for key, value in STEPS[-1]["hash"]}
        assert dict(joined._replica.content) == {k: v for k, v in expected.items() if not k.startswith("=")}
