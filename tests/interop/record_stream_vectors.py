"""Records what the real Go Pulse writes for streams into ``vectors/stream-wire.json``: run this file with Python.

The entries of a stream after each add, and what a sink leaves in the server: the group, its consumer's form, the two
maps and the lease. The file is data about Pulse's behaviour; replaying it needs neither Go nor Pulse. Needs the Go
peer.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from interop.peer import GoPeer

FILE = Path(__file__).parent / "vectors" / "stream-wire.json"
SOURCE = "Go Pulse, goa.design/pulse v1.6.5 (commit 4c3bed6), MIT licence, https://github.com/goadesign/pulse"
NAME, SINK = "vectors", "persister"
ADDS: list[dict[str, Any]] = [
    {"name": "created", "payload": b"{}", "topic": ""},
    {"name": "created", "payload": b"", "topic": "orders"},
    {"name": "", "payload": bytes(range(256)), "topic": ""},
    {"name": "n\u00e4me", "payload": "p\u00e4yload".encode(), "topic": "t\u00f6pic with spaces"},
    {"name": "large", "payload": b"x" * 5000, "topic": "l"},
]


def boxed(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


async def main() -> None:
    async with EmbeddedRedis() as server, GoPeer.start(server.url) as peer, Redis.from_url(server.url) as redis:
        await peer.call("stream.open", handle="s", name=NAME)
        adds = []
        for add in ADDS:
            event_id = await peer.call("stream.add", handle="s", **add)
            ((raw_id, fields),) = await redis.link.call("XREVRANGE", f"pulse:stream:{NAME}", "+", "-", "COUNT", 1)
            assert raw_id.decode() == event_id
            adds.append({**add, "payload": boxed(add["payload"]), "fields": [boxed(field) for field in fields]})
        await peer.call("stream.sink", handle="k", name=SINK, streams=["s"], start="oldest")
        for _ in ADDS:
            await peer.event()
        while not await redis.link.call("EXISTS", f"sink:{SINK}:stalelease"):
            await asyncio.sleep(0.001)
        (group,) = await redis.link.call("XINFO", "GROUPS", f"pulse:stream:{NAME}")
        (consumer,) = await redis.link.call("XINFO", "CONSUMERS", f"pulse:stream:{NAME}", SINK)
        sink = {
            "group": group[b"name"].decode(),
            "pending": group[b"pending"],
            "consumer": consumer[b"name"].decode(),
            "sinks_map": {
                k.decode(): v.decode() for k, v in (await redis.hgetall(f"map:stream:{NAME}:sinks:content")).items()
            },
            "keepalive_map": {
                k.decode(): v.decode() for k, v in (await redis.hgetall(f"map:sink:{SINK}:keepalive:content")).items()
            },
            "lease_key": f"sink:{SINK}:stalelease",
            "keys": sorted(key.decode() for key in await redis.keys("*")),
        }
        await peer.call("stream.sink.close", handle="k")
    FILE.parent.mkdir(exist_ok=True)
    document = {"recorded_from": SOURCE, "stream": NAME, "sink_name": SINK, "adds": adds, "sink": sink}
    FILE.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
