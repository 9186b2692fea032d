"""B1: Redis commands per second from one process: the link, the client over it, redis-py and valkey-glide.

Every contestant runs the same loop: N callers, each awaiting one command after the other. ``CALLERS=50 OPS=get`` and
``SECONDS=1`` narrow it down; ``LOOP=asyncio`` measures without uvloop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio as redis_py

from _common import Side, compete, is_installed, pin, print_versions, report, rounds_from, run
from flotta.redis import Link, Redis, Script
from flotta.redis.embedded import EmbeddedRedis

SECONDS = float(os.environ.get("SECONDS", "0.5"))
CALLERS = [int(count) for count in os.environ.get("CALLERS", "1,50,500").split(",")]
OPS = os.environ.get("OPS", "get,set,xadd,evalsha").split(",")
VALUE = b"x" * 100
LUA = "return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"

Call = Callable[[], Awaitable[Any]]


async def commands_per_s(call: Call, callers: int) -> float:
    """How many commands ``callers`` callers get through together in a second."""
    is_over = False
    done = 0

    async def caller() -> None:
        nonlocal done
        count = 0
        while not is_over:
            await call()
            count += 1
        done += count

    def end() -> None:
        nonlocal is_over
        is_over = True

    asyncio.get_running_loop().call_later(SECONDS, end)
    started_s = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - started_s)


def link_calls(link: Link) -> dict[str, Call]:
    script = Script(LUA, name="bench")
    return {
        "get": lambda: link.call("GET", "bench:key"),
        "set": lambda: link.call("SET", "bench:key", VALUE),
        "xadd": lambda: link.call("XADD", "bench:stream", "MAXLEN", "~", 1000, "*", "f", VALUE),
        "evalsha": lambda: script(link, keys=["bench:hash"], args=["field"]),
    }


def client_calls(client: Redis | redis_py.Redis) -> dict[str, Call]:
    script = client.register_script(LUA)
    return {
        "get": lambda: client.get("bench:key"),
        "set": lambda: client.set("bench:key", VALUE),
        "xadd": lambda: client.xadd("bench:stream", {"f": VALUE}, maxlen=1000),
        "evalsha": lambda: script(keys=["bench:hash"], args=["field"]),
    }


async def glide_calls(host: str, port: int) -> tuple[dict[str, Call], Any]:
    import glide

    client = await glide.GlideClient.create(glide.GlideClientConfiguration([glide.NodeAddress(host, port)]))
    script = glide.Script(LUA)
    trim = glide.StreamAddOptions(trim=glide.TrimByMaxLen(exact=False, threshold=1000))
    calls: dict[str, Call] = {
        "get": lambda: client.get("bench:key"),
        "set": lambda: client.set("bench:key", VALUE),
        "xadd": lambda: client.xadd("bench:stream", [("f", VALUE)], trim),
        "evalsha": lambda: client.invoke_script(script, keys=["bench:hash"], args=["field"]),
    }
    return calls, client


async def main() -> None:
    with EmbeddedRedis() as server:
        pin([server.pid])
        link = await Link.connect(server.url)
        client = await Redis.from_url(server.url).connect()
        peer = redis_py.Redis.from_url(server.url, max_connections=max(CALLERS) + 10)
        version = ".".join(map(str, link.server_version))
        print_versions("flotta", "redis", "hiredis", "valkey-glide", "uvloop", Valkey=version)
        contestants = {"link": link_calls(link), "redis": client_calls(client), "redis-py": client_calls(peer)}
        glide_client = None
        if is_installed("glide", "glide"):
            contestants["glide"], glide_client = await glide_calls("127.0.0.1", server.port)
        await client.set("bench:key", VALUE)
        for op in OPS:
            for callers in CALLERS:
                await contest(op, callers, contestants)
        if glide_client is not None:
            await glide_client.close()
        await peer.aclose()
        await client.aclose()
        await link.aclose()


async def contest(op: str, callers: int, contestants: dict[str, dict[str, Call]]) -> None:
    def side(call: Call) -> Side:
        return lambda: commands_per_s(call, callers)

    results = await compete({name: side(calls[op]) for name, calls in contestants.items()}, rounds=rounds_from())
    for ours in ("link", "redis"):
        report(f"{ours}-{op}-{callers}", results, unit="commands/s", ours=ours, peers=["redis-py", "glide"])


if __name__ == "__main__":
    run(main)
