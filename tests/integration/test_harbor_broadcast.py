"""Harbor's broadcasts where an instance has lost sight of the shares: nothing is shown by guess, and what was kept back
is made good."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from flotta.fleet import Fleet
from flotta.realtime import Server
from flotta.redis import Redis
from flotta.rmap import JSON, Map
from flotta.testing import FaultProxy
from harbor.devices.registry import Registry
from harbor.fence import Fence
from harbor.live.broadcast import Broadcast
from harbor.positions.fix import Fix
from harbor.sharing.grants import Grants
from realtime_fixtures import serving, until
from realtime_recovery_stage import Raw

OWNER, VIEWER = 1, 2


class Maps:
    """What `Grants` and `Registry` take from a fleet: the maps, here over a connection that can be lost."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.joined: dict[str, Map[Any]] = {}

    async def join(self, *names: str) -> None:
        for name in names:
            self.joined[name] = await Map.join(name, self._redis, codec=JSON)

    def map(self, name: str, *, codec: object) -> Map[Any]:
        assert codec is JSON
        return self.joined[name]


async def test_pages_from_which_something_was_kept_back_load_the_picture_when_the_shares_are_known_again(
    valkey_url: str, unique: str
) -> None:
    async with FaultProxy(valkey_url) as proxy, Redis.from_url(proxy.url, namespace=f"{unique}:") as redis:
        maps = Maps(redis)
        await maps.join("harbor:sharing", "harbor:devices", "harbor:credentials")
        fleet = cast("Fleet", maps)
        await maps.joined["harbor:devices"].set("tug", {"account": OWNER})
        await maps.joined["harbor:sharing"].set(f"fleet:{OWNER}", [VIEWER])
        sio = Server(valkey_url, adapter="streams", stream_name=unique, channel_prefix=unique)
        broadcast = Broadcast(sio, Registry(fleet, Fence()), grants := Grants(fleet, Fence()))

        @sio.event
        async def connect(sid: str, _environ: object, auth: dict[str, int]) -> None:
            await sio.set_user(sid, str(auth["account"]))

        await sio.start()
        healing = asyncio.create_task(broadcast.heal())
        async with serving(sio, native=True) as port:
            viewer, owner = await Raw.join(port, {"account": VIEWER}), await Raw.join(port, {"account": OWNER})
            await broadcast.positions(OWNER, [Fix("tug", 1, 40.0, -74.0)])
            assert [(await page.event())[1][0][1] for page in (viewer, owner)] == [1, 1]
            proxy.pause()
            proxy.cut()
            await until(lambda: not grants.known)
            await broadcast.positions(OWNER, [Fix("tug", 2, 40.0, -74.0)])
            assert (await owner.event())[1][0][1] == 2
            proxy.resume()
            await until(lambda: grants.known)
            assert (await viewer.event())[0] == "sharing", "the second was kept back"
            await broadcast.positions(OWNER, [Fix("tug", 3, 40.0, -74.0)])
            assert (await viewer.event())[1][0][1] == 3
            assert (await owner.event())[1][0][1] == 3, "from whom nothing was kept back loads nothing"
        healing.cancel()
        for joined in maps.joined.values():
            await joined.aclose()
