"""Records what the real Go Pulse does into ``vectors/map-operations.json``: run this file with Python.

For each operation: its arguments, Pulse's reply, the messages it published and the hash afterwards, as bytes in base64.
The file is data about Pulse's behaviour; replaying it needs neither Go nor Pulse. Needs the Go peer (see ``peer.py``).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from interop.map_calls import EVERY_OPERATION, Call, Recorder, by_go
from interop.peer import GoPeer

FILE = Path(__file__).parent / "vectors" / "map-operations.json"
SOURCE = "Go Pulse, goa.design/pulse v1.6.5 (commit 4c3bed6), MIT licence, https://github.com/goadesign/pulse"
NAME = "vectors"


def boxed(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


async def record_one(peer: GoPeer, redis: Redis, recorder: Recorder, call: Call) -> dict[str, Any]:
    reply = await by_go(peer, "m", call)
    # The subscription is another connection: a message of its own, after all others, says that they are here.
    await redis.link.call("PUBLISH", f"map:{NAME}:updates", "end")
    async with asyncio.timeout(5):
        while not recorder.messages or recorder.messages[-1] != b"end":
            await asyncio.sleep(0)
    messages = [boxed(message) for message in recorder.messages[:-1]]
    recorder.messages.clear()
    stored = await redis.link.call("HGETALL", f"map:{NAME}:content")
    fields = sorted([boxed(key), boxed(value)] for key, value in stored.items())
    return {"call": dataclasses.asdict(call), "reply": reply, "messages": messages, "hash": fields}


async def main() -> None:
    async with EmbeddedRedis() as server, GoPeer.start(server.url) as peer:
        redis = await Redis.from_url(server.url).connect()
        recorder = Recorder()
        await redis.hub.subscribe(f"map:{NAME}:updates", recorder)
        await peer.call("map.join", handle="m", name=NAME)
        steps = [await record_one(peer, redis, recorder, call) for call in EVERY_OPERATION]
        await redis.aclose()
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"recorded_from": SOURCE, "steps": steps}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
