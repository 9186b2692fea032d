"""The chat's picture of who is online, where Redis does not answer."""

from __future__ import annotations

import asyncio

from flotta import Fleet, Settings
from flotta.redis.embedded import EmbeddedRedis
from quay.live.online import Online
from realtime_fixtures import until


async def test_question_that_found_no_answer_is_asked_again() -> None:
    with EmbeddedRedis() as valkey:
        fleet = Fleet(Settings(service="quay", redis_url=valkey.url, drain_s=1, stop_s=2))
        server = fleet.realtime(presence=True)
        online = Online(fleet, server)
        fleet.on_start(online.open)
        fleet.on_stop(online.aclose)
        server.on("connect", lambda sid, *_: None)
        async with fleet:
            await fleet.redis.link.call("ACL", "SETUSER", "default", "-zrangebylex")  # what a page of users asks
            keeping = asyncio.create_task(online.keep())
            try:
                async with asyncio.timeout(10):
                    while b"errorstat_NOPERM" not in await fleet.redis.link.call("INFO", "errorstats"):
                        await asyncio.sleep(0.01)
                prefix = fleet.redis.key("{socket.io}:people:")
                record = b'{"user":"7","socketId":"s","serverId":"abcd","namespace":"/","connectedAt":1}'
                (lease,) = await fleet.redis.zrange(f"{prefix}leases", 0, -1)
                await fleet.redis.hset(f"{prefix}user:7", "s", lease + b"\nc\n" + record)
                await fleet.redis.zadd(f"{prefix}users", {"7": 0})
                assert not keeping.done()
                await fleet.redis.link.call("ACL", "SETUSER", "default", "+zrangebylex")
                await until(lambda: online.users() == {"7": ["abcd"]})
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
