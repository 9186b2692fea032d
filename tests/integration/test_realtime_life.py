"""What a server says to who uses it too early, at its end, and too late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from flotta.errors import Closed, NotStarted
from flotta.realtime import Server
from flotta.realtime.adapters import streams, streams_reader
from flotta.realtime.relay import leases
from flotta.redis import Redis
from realtime_fixtures import serving, until
from realtime_people import come

USES: dict[str, Callable[[Server], Awaitable[Any]]] = {
    "emit": lambda sio: sio.emit("news"),
    "emit local": lambda sio: sio.emit("news", local=True),
    "send": lambda sio: sio.send("news"),
    "call": lambda sio: sio.call("ask", to="sid"),
    "call_all": lambda sio: sio.call_all("ask"),
    "enter_room": lambda sio: sio.enter_room("sid", "room"),
    "leave_room": lambda sio: sio.leave_room("sid", "room"),
    "close_room": lambda sio: sio.close_room("room"),
    "save_session": lambda sio: sio.save_session("sid", {}),
    "disconnect": lambda sio: sio.disconnect("sid"),
    "sockets_join": lambda sio: sio.sockets_join("room"),
    "disconnect_sockets": lambda sio: sio.disconnect_sockets(),
    "fetch_sockets": lambda sio: sio.fetch_sockets(),
    "server_count": lambda sio: sio.server_count(),
    "all_rooms": lambda sio: sio.all_rooms(),
    "server_side_emit": lambda sio: sio.server_side_emit("news"),
    "server_side_call": lambda sio: sio.server_side_call("ask"),
    "set_user": lambda sio: sio.set_user("sid", "ada"),
    "extend": lambda sio: sio.extend("sid", None),
    "disconnect_user": lambda sio: sio.disconnect_user("ada"),
    "revoke": lambda sio: sio.revoke("ada"),
    "presence.online": lambda sio: sio.presence.online("ada"),
    "presence.users": lambda sio: sio.presence.users(),
    "presence.set_status": lambda sio: sio.presence.set_status("sid", "away"),
    "presence.changes": lambda sio: sio.presence.changes().__aenter__(),
}


async def ask_only(sio: Server) -> None:
    """What only asks for own clients finds none."""
    assert sio.rooms("sid") == []
    assert await sio.get_session("sid") == {}
    assert sio.get_environ("sid") is None
    assert not sio.is_connected("sid")
    assert not sio.recovered("sid")
    assert sio.user_of("sid") is None


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shared", [True, False])
async def test_use_before_the_start_and_after_the_end_says_so(
    use: str, shared: bool, redis: Redis, unique: str
) -> None:
    sio = Server(redis if shared else None, channel_prefix=unique, presence=True)
    with pytest.raises(NotStarted, match=r"has not started: await start\(\)|start it first"):
        await USES[use](sio)
    await ask_only(sio)
    async with sio:
        pass
    with pytest.raises(Closed, match="the realtime server is closed"):
        await USES[use](sio)
    await ask_only(sio)
    never = Server(channel_prefix=unique, presence=True)
    await never.aclose()
    with pytest.raises(Closed):
        await USES[use](never)


async def test_last_handlers_still_use_the_server_that_closes(redis: Redis, unique: str) -> None:
    one = Server(redis, channel_prefix=unique, presence=True)
    other = Server(redis, channel_prefix=unique, presence=True)
    done: list[str] = []

    async def enter(sid: str, *_: Any) -> None:
        await one.set_user(sid, "ada")

    async def last(sid: str, reason: str) -> None:
        await one.emit("gone", one.user_of(sid))
        await one.save_session(sid, {"at": "the end"})
        await one.close_room("room")
        done.append(reason)

    one.on("connect", enter)
    one.on("disconnect", last)
    other.on("connect", lambda sid, *_: None)
    async with serving(other, native=True) as at_other:
        visitor = await come(at_other)
        async with serving(one, native=True) as at_one:
            await come(at_one)
            await one.aclose()
        await until(lambda: done)
        assert await visitor.next() == '42["gone","ada"]'


async def test_server_whose_start_failed_has_not_started_and_can_be_started_again(valkey_url: str, unique: str) -> None:
    sio = Server("redis://127.0.0.1:1", channel_prefix=unique, presence=True)
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1"):
        async with asyncio.timeout(30):
            await sio.start()
    with pytest.raises(NotStarted):
        await sio.emit("news")
    await sio.start(valkey_url)
    await sio.emit("news")
    assert await sio.presence.users() == []
    await sio.aclose()


async def test_redis_that_is_closed_before_its_server_is_told_of_once(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, interval in ((leases, "BEAT_S"), (streams, "UPKEEP_S"), (streams_reader, "BLOCK_S")):
        monkeypatch.setattr(module, interval, 0.05)
    names: dict[str, Any] = {"channel_prefix": unique, "stream_name": unique}
    redis = Redis.from_url(valkey_url)
    await redis.connect()
    with capture_logs() as lines:
        async with Server(redis, adapter="streams", presence=True, presence_ttl_s=1.0, **names):
            await redis.aclose()
            loops = ("relay lease", "presence beat", "realtime stream")
            await until(lambda: not any(task.get_name().startswith(loops) for task in asyncio.all_tasks()))
    told = [line["what"] for line in lines if line["event"] == "the Redis was closed before the server"]
    assert sorted(told) == ["lease", "presence", "stream"]
    assert [line for line in lines if line["log_level"] == "error"] == []
