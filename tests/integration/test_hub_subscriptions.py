"""Subscriptions of one process: confirmed, ordered, and honest about gaps."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flotta.errors import Closed, LinkUnavailable
from flotta.redis import Hub, Kind, LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy

QUICK = LinkOptions(reconnect_min_s=0.01, command_timeout_s=1.0)


class Ear:
    """Puts everything it hears into a queue."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[object] = asyncio.Queue()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        self.heard.put_nowait((channel, payload))

    def on_lost(self) -> None:
        self.heard.put_nowait("lost")

    def on_restored(self) -> None:
        self.heard.put_nowait("restored")

    async def next(self) -> object:
        async with asyncio.timeout(10):
            return await self.heard.get()


@pytest.fixture
async def hub(valkey_url: str) -> AsyncIterator[Hub]:
    made = Hub(valkey_url, options=QUICK)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("kind", "suffix", "command"),
    [("channel", "", "PUBLISH"), ("pattern", "*", "PUBLISH"), ("shard", "", "SPUBLISH")],
)
async def test_every_kind_hears_what_is_published_after_subscribe(
    hub: Hub, redis: Redis, unique: str, kind: Kind, suffix: str, command: str
) -> None:
    ear = Ear()
    subscription = await hub.subscribe(unique + suffix, ear, kind=kind)
    for number in range(100):
        await redis.execute_command(command, unique, number)
    assert [await ear.next() for _ in range(100)] == [(unique.encode(), str(n).encode()) for n in range(100)]
    await subscription.aclose()


async def test_listeners_of_one_channel_share_it_until_the_last_has_left(hub: Hub, redis: Redis, unique: str) -> None:
    one, two = Ear(), Ear()
    first, second = await asyncio.gather(hub.subscribe(unique, one), hub.subscribe(unique, two))
    assert await redis.publish(unique, "x") == 1
    assert await one.next() == await two.next() == (unique.encode(), b"x")
    await first.aclose()
    await first.aclose()
    assert await redis.publish(unique, "y") == 1
    assert await two.next() == (unique.encode(), b"y")
    assert one.heard.empty()
    await second.aclose()
    while await redis.publish(unique, "z"):
        pass
    assert two.heard.empty() or await two.next() == (unique.encode(), b"z")


async def test_quick_leaving_and_coming_ends_subscribed(hub: Hub, redis: Redis, unique: str) -> None:
    ear = Ear()
    for _ in range(50):
        await (await hub.subscribe(unique, ear)).aclose()
    await hub.subscribe(unique, ear)
    assert await redis.publish(unique, "x") == 1
    assert await ear.next() == (unique.encode(), b"x")


async def test_cancelled_subscribe_leaves_nothing_behind(hub: Hub, redis: Redis, unique: str) -> None:
    ear = Ear()
    await hub.subscribe(f"{unique}-other", ear)
    subscribing = asyncio.ensure_future(hub.subscribe(unique, ear))
    await asyncio.sleep(0)
    subscribing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await subscribing
    await hub.subscribe(f"{unique}-later", ear)
    while await redis.publish(unique, "x"):
        pass
    assert await redis.publish(f"{unique}-later", "y") == 1


async def test_restart_tells_lost_then_restored_then_only_later_messages(own_valkey: EmbeddedRedis) -> None:
    hub = Hub(own_valkey.url, options=QUICK)
    ears = [Ear() for _ in range(200)]
    await asyncio.gather(*(hub.subscribe(f"c{place}", ear) for place, ear in enumerate(ears)))
    pattern = Ear()
    await hub.subscribe("c1*", pattern, kind="pattern")
    own_valkey.kill()
    assert {await ear.next() for ear in (*ears, pattern)} == {"lost"}
    await own_valkey.restart()
    publisher = await Redis.from_url(own_valkey.url).connect()
    is_over = asyncio.Event()

    async def publish() -> None:
        while not is_over.is_set():
            await publisher.publish("c0", "x")

    publishing = asyncio.create_task(publish())
    assert {await ear.next() for ear in (*ears, pattern)} == {"restored"}, "a message overtook on_restored"
    assert await ears[0].next() == (b"c0", b"x")
    is_over.set()
    await publishing
    await hub.aclose()
    await publisher.aclose()


async def test_no_message_of_the_same_read_overtakes_the_restoring(hub: Hub, unique: str) -> None:
    ear = Ear()
    await hub.subscribe(unique, ear)
    channel = unique.encode()
    # What the reading loop calls, one after the other without a turn of the event loop between.
    hub.on_link_down("lost")
    hub.on_link_push([b"subscribe", channel, 1])
    hub.on_link_push([b"message", channel, b"x"])
    assert [await ear.next() for _ in range(3)] == ["lost", "restored", (channel, b"x")]


async def test_subscribing_during_an_outage_waits_for_the_confirmation(own_valkey: EmbeddedRedis) -> None:
    hub = Hub(own_valkey.url, options=LinkOptions(reconnect_min_s=0.01))
    ear, late = Ear(), Ear()
    await hub.subscribe("c", ear)
    own_valkey.kill()
    assert await ear.next() == "lost"
    same = asyncio.ensure_future(hub.subscribe("c", late))
    new = asyncio.ensure_future(hub.subscribe("d", late))
    await own_valkey.restart()
    await asyncio.gather(same, new)
    async with Redis.from_url(own_valkey.url) as publisher:
        assert await publisher.publish("c", 1) == 1
        assert await publisher.publish("d", 2) == 1
    await hub.aclose()


async def test_no_server_is_an_error_in_time() -> None:
    hub = Hub("redis://127.0.0.1:1", options=LinkOptions(command_timeout_s=0.2, connect_timeout_s=0.2))
    with pytest.raises(LinkUnavailable):
        await hub.subscribe("c", Ear())
    await hub.aclose()
    with pytest.raises(Closed):
        await hub.subscribe("c", Ear())


async def test_silent_hub_connection_is_noticed_and_said(valkey_url: str, unique: str, redis: Redis) -> None:
    async with FaultProxy(valkey_url) as proxy:
        hub = Hub(proxy.url, options=LinkOptions(heartbeat_s=0.2, reconnect_min_s=0.01, connect_timeout_s=1))
        ear = Ear()
        await hub.subscribe(unique, ear)
        proxy.pause()
        assert await ear.next() == "lost"
        proxy.resume()
        assert await ear.next() == "restored"
        await redis.publish(unique, "x")
        assert await ear.next() == (unique.encode(), b"x")
        await hub.aclose()


async def test_a_listener_that_raises_harms_no_other(hub: Hub, redis: Redis, unique: str) -> None:
    class Broken(Ear):
        def on_message(self, channel: bytes, payload: bytes) -> None:
            raise ZeroDivisionError

    ear = Ear()
    await hub.subscribe(unique, Broken())
    await hub.subscribe(unique, ear)
    await redis.publish(unique, "x")
    assert await ear.next() == (unique.encode(), b"x")
    assert hub.connected


async def test_a_listener_that_leaves_while_being_told_harms_no_other(hub: Hub, redis: Redis, unique: str) -> None:
    class Leaver(Ear):
        def on_message(self, channel: bytes, payload: bytes) -> None:
            super().on_message(channel, payload)
            leaving.append(asyncio.ensure_future(subscription.aclose()))

    leaving: list[asyncio.Future[None]] = []
    leaver, ear = Leaver(), Ear()
    subscription = await hub.subscribe(unique, leaver)
    await hub.subscribe(unique, ear)
    await redis.publish(unique, "x")
    assert await leaver.next() == await ear.next() == (unique.encode(), b"x")
    await asyncio.gather(*leaving)
    await redis.publish(unique, "y")
    assert await ear.next() == (unique.encode(), b"y")
    assert leaver.heard.empty()


async def test_restoring_goes_on_until_a_server_that_refuses_for_now_confirms(own_valkey: EmbeddedRedis) -> None:
    hub = Hub(own_valkey.url, options=LinkOptions(retries=0, reconnect_min_s=0.01, reconnect_max_s=0.02))
    ear, refused = Ear(), asyncio.Event()
    await hub.subscribe("c", ear)
    admin = await Redis.from_url(own_valkey.url).connect()
    await admin.config_set("busy-reply-threshold", 1)
    up, refuse = hub.on_link_up, hub._refuse

    def up_when_a_script_has_just_begun() -> None:
        with socket.create_connection(("127.0.0.1", own_valkey.port)) as busy:
            busy.sendall(b"EVAL 'while true do end' 0\r\n")
            with socket.create_connection(("127.0.0.1", own_valkey.port)) as probe:
                answer = b""
                while b"BUSY" not in answer:
                    probe.sendall(b"PING\r\n")
                    answer = probe.recv(1000)
        up()

    def note(topic: Any, error: Exception) -> None:
        refuse(topic, error)
        refused.set()

    hub.on_link_up, hub._refuse = up_when_a_script_has_just_begun, note  # type: ignore[method-assign]
    await admin.client_kill_filter(_type="pubsub")
    assert await ear.next() == "lost"
    async with asyncio.timeout(10):
        await refused.wait()
    await admin.script_kill()
    assert await ear.next() == "restored"
    assert hub._link.stats.connections == 2
    await admin.aclose()
    await hub.aclose()
