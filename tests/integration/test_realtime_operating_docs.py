"""What the page on operating says of Redis: its user may do everything that is needed, and no key is left out."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from flotta.realtime import Emitter, Server
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import serving, until
from realtime_members import attach
from realtime_moves import Wanderer
from realtime_recovery_stage import Raw

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "operating-realtime.md"
LASTING = re.compile(r"socket\.io|\{socket\.io\}:people:(user:.*|of:.*|users|leases|meta)")
PASSING = re.compile(r"sio:session:.*|socket\.io-instance#.*|\{socket\.io\}:people:revoked:.*")


async def _keys(admin: Redis) -> dict[str, int]:
    """Every key, and its time to live (-1: none)."""
    found = sorted([key.decode() async for key in admin.scan_iter()])
    return {key: await admin.pttl(key) for key in found}


def _server(url: str, name: str) -> Server:
    sio = Server(url, adapter="streams", presence=True, connections_per_user_max=5, instance=name)

    @sio.event
    async def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        await sio.set_user(sid, (auth or {}).get("user", "somebody"))
        await sio.enter_room(sid, "room")

    return sio


async def test_user_of_the_page_may_do_everything_and_every_key_is_on_it(own_valkey: EmbeddedRedis) -> None:
    async with await Redis.from_url(own_valkey.url).connect() as admin:
        for rules in re.findall(r"```text\n((?:realtime|emitter) on .*?)```", PAGE.read_text(), re.DOTALL):
            await admin.execute_command("ACL", "SETUSER", *rules.split())
        url = own_valkey.url.replace("redis://", "redis://realtime:PASSWORD@")
        one, two = _server(url, "one1"), _server(url, "two2")
        async with serving(one, native=True) as port, serving(two, native=True) as other_port:
            client = await Raw.join(port, {"user": "ada"})
            async with Emitter(url.replace("realtime:", "emitter:"), adapter="streams") as emitter:
                await emitter.server_side_emit("unheard")
                await emitter.emit("n", 1, room="room")
            assert (await client.event())[:2] == ["n", 1]
            client.cut()
            await until(lambda: not one.is_connected(client.ids["sid"]))
            again = await Raw.join(other_port, {**client.back(None), "user": "ada"})
            assert again.ids == client.ids
            member = await attach(two)
            assert {found.id for found in await one.fetch_sockets()} == {member.sid, again.ids["sid"]}
            assert await one.presence.set_status(member.sid, "away") is False
            assert await two.presence.set_status(member.sid, "away")
            await one.revoke("nobody")
            async with one.presence.changes():
                assert await one.presence.users() == ["ada", "somebody"]
                assert await one.presence.users_count() == len(await one.presence.sockets(["ada", "somebody"]))
            wanderer = Wanderer(one)
            await wanderer.join()
            wanderer.upgrade_at(two)
            await until(lambda: wanderer.websocket.got == ["3probe"])
            wanderer.switch()
            await until(lambda: two.stats.relay is not None and two.stats.relay.moved_here == 1)
            for sio in (one, two):
                core: Any = sio._core
                await core.relay._leases._refresh()
                await core.relay._leases._look()
                await core.relay._leases._compare()
                await core.people.registry._renew(quiet=False)
                await core.people.registry._beat()
                core.people.registry._ears.check_soon()
                await core.people.registry._ears._checking
                core.adapter._keep_s = 0.0
                await core.adapter._keep_up()
            await admin.xtrim("socket.io", maxlen=0)  # as after a loss
            assert await two._core.adapter._reader._check() is False  # type: ignore[union-attr]
            keys = await _keys(admin)
            assert {key for key, ttl_ms in keys.items() if ttl_ms < 0 and not LASTING.fullmatch(key)} == set()
            assert {key for key, ttl_ms in keys.items() if ttl_ms > 0 and not PASSING.fullmatch(key)} == set()
            again.cut()
            async with asyncio.timeout(10):
                while "people:user:ada" in str(await _keys(admin)):
                    await asyncio.sleep(0.01)
        assert {key for key, ttl_ms in (await _keys(admin)).items() if ttl_ms < 0} <= {
            "socket.io",
            "{socket.io}:people:meta",
        }
        log = await admin.execute_command("ACL", "LOG", 100)
        assert [entry for entry in log if re.search(rb"realtime|emitter", str(entry).encode())] == []
