"""What the page about balancing says of Redis' users is enough."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from test_realtime_relay import pair

from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import until
from realtime_moves import Wanderer, move, world

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "realtime-balancing.md"


async def _user(admin: Redis, url: str) -> str:
    """Make the page's user; the URL with which it logs in."""
    [rules] = re.findall(r"```text\n(realtime on .*?)```", PAGE.read_text(), re.DOTALL)
    await admin.execute_command("ACL", "SETUSER", *rules.split())
    return url.replace("redis://", "redis://realtime:PASSWORD@")


async def _refused(admin: Redis) -> list[object]:
    return [entry for entry in await admin.execute_command("ACL", "LOG", 100) if b"realtime" in str(entry).encode()]


async def test_user_of_the_page_may_relay_and_move(own_valkey: EmbeddedRedis) -> None:
    async with await Redis.from_url(own_valkey.url).connect() as admin:
        url = await _user(admin, own_valkey.url)
        async with pair(url, "socket.io") as two:
            sid = await two.join()
            assert (await two.post(sid, '421["echo",1]')).text == "ok"
            assert (await two.get(sid)).text == "431[1]"
            assert two.there._relay is not None
            waiting = asyncio.create_task(two.get(sid))
            await until(lambda: two.there._relay is not None and two.there._relay.stats.waiting == 1)
            await two.there._relay._leases._refresh()
            await two.there._relay._leases._look()
            await two.there._relay._leases._compare()
            await two.home.emit("still")
            assert (await waiting).text == '42["still"]'
        async with world(url, "socket.io", 2) as made:
            wanderer = Wanderer(made.servers[0])
            await wanderer.join("room")
            await move(made, wanderer)
            await made.servers[0].emit("n", 1, room="room")
        assert await _refused(admin) == []
