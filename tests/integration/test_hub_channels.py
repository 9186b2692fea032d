"""Channels that come and go with their users: thousands of them, in bursts, through outages, on a cluster's node."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from flotta.errors import Closed, CommandError
from flotta.redis import Hub, LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from free_ports import free_port

QUICK = LinkOptions(reconnect_min_s=0.01, reconnect_max_s=0.05, command_timeout_s=2.0)
WAIT_S = 15.0


class Ear:
    """Counts what it hears; ``changed`` is set at each."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost = self.restored = 0
        self.changed = asyncio.Event()

    def on_message(self, _channel: bytes, payload: bytes) -> None:
        self.got.append(payload)
        self.changed.set()

    def on_lost(self) -> None:
        self.lost += 1
        self.changed.set()

    def on_restored(self) -> None:
        self.restored += 1
        self.changed.set()

    async def until(self, **least: int) -> None:
        await self._wait(lambda: all(getattr(self, name) >= count for name, count in least.items()))

    async def heard(self, count: int) -> None:
        await self._wait(lambda: len(self.got) >= count)

    async def _wait(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not enough():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def hub(valkey_url: str) -> AsyncIterator[Hub]:
    made = Hub(valkey_url, options=QUICK)
    yield made
    await made.aclose()


async def _subscribers(redis: Redis, *channels: str) -> dict[str, int]:
    reply = await redis.link.call("PUBSUB", "SHARDNUMSUB", *channels)
    return {name.decode(): count for name, count in zip(reply[::2], reply[1::2], strict=True)}


async def test_listen_hears_what_is_published_once_it_is_live(hub: Hub, redis: Redis, unique: str) -> None:
    ear = Ear()
    subscription = hub.listen(unique, ear, kind="shard")
    assert not subscription.live
    await subscription.wait_live()
    assert subscription.live
    await redis.execute_command("SPUBLISH", unique, "x")
    async with asyncio.timeout(WAIT_S):
        await ear.changed.wait()
    subscription.close()
    subscription.close()
    assert not subscription.live
    await subscription.wait_live()
    await hub.subscribe(f"{unique}-later", ear, kind="shard")
    assert await _subscribers(redis, unique) == {unique: 0}
    assert ear.got == [b"x"]
    await hub.aclose()
    with pytest.raises(Closed):
        hub.listen(unique, ear)


@pytest.mark.parametrize("seed", range(5))
async def test_any_burst_ends_subscribed_exactly_where_somebody_listens(
    hub: Hub, redis: Redis, unique: str, seed: int
) -> None:
    rng = random.Random(seed)
    names = [f"{unique}-{number}" for number in range(8)]
    held: dict[str, list[object]] = {name: [] for name in names}
    for _ in range(600):
        name = rng.choice(names)
        if held[name] and rng.random() < 0.6:
            held[name].pop().close()  # type: ignore[attr-defined]
        else:
            held[name].append(hub.listen(name, Ear(), kind="shard"))
        if rng.random() < 0.2:
            await asyncio.sleep(rng.choice([0, 0, 0.001]))
    for subscriptions in held.values():
        for subscription in subscriptions:
            await subscription.wait_live()  # type: ignore[attr-defined]
    await hub.subscribe(f"{unique}-last", Ear(), kind="shard")  # what was sent before has been done
    await hub.subscribe(f"{unique}-last-2", Ear(), kind="shard")  # so has what its confirmation has caused
    assert await _subscribers(redis, *names) == {name: int(bool(held[name])) for name in names}


async def test_ten_thousand_channels_survive_a_killed_connection_and_a_restart(own_valkey: EmbeddedRedis) -> None:
    hub, count = Hub(own_valkey.url, options=QUICK), 10_000
    ear = Ear()
    subscriptions = [hub.listen(f"room{number}", ear, kind="shard") for number in range(count)]
    await subscriptions[-1].wait_live()
    assert all(subscription.live for subscription in subscriptions)
    async with Redis.from_url(own_valkey.url) as publisher:
        await publisher.client_kill_filter(_type="pubsub")
        await ear.until(lost=count, restored=count)
        assert await publisher.execute_command("SPUBLISH", "room9999", "after the kill") == 1
        await ear.heard(1)  # a killed server's reset would take with it what was not read yet
        own_valkey.kill()
        await ear.until(lost=2 * count)
        await own_valkey.restart()
        await ear.until(restored=2 * count)
        assert await publisher.execute_command("SPUBLISH", "room0", "after the restart") == 1
        await ear.heard(2)
    assert ear.got == [b"after the kill", b"after the restart"]
    await hub.aclose()


async def test_listening_while_redis_is_away_says_so_and_ends_live(own_valkey: EmbeddedRedis) -> None:
    quick = LinkOptions(reconnect_min_s=0.01, reconnect_max_s=0.05, command_timeout_s=0.2)
    hub, first, late, gone = Hub(own_valkey.url, options=quick), Ear(), Ear(), Ear()
    await hub.subscribe("first", first, kind="shard")
    own_valkey.kill()
    await first.until(lost=1)
    subscription = hub.listen("late", late, kind="shard")
    hub.listen("gone", gone, kind="shard").close()
    await late.until(lost=1)
    await own_valkey.restart()
    await late.until(restored=1)
    assert subscription.live
    async with Redis.from_url(own_valkey.url) as publisher:
        assert await _subscribers(publisher, "late", "gone") == {"late": 1, "gone": 0}
    assert gone.lost == 0
    await hub.aclose()


async def test_refused_channel_is_told_and_its_neighbours_live(own_valkey: EmbeddedRedis) -> None:
    async with Redis.from_url(own_valkey.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "+@all", "&allowed*", "resetkeys")
        hub = Hub(own_valkey.url.replace("redis://", "redis://narrow:secret@"), options=QUICK)
        ear = Ear()
        refused, allowed = (hub.listen(name, ear, kind="shard") for name in ("forbidden", "allowed"))
        with pytest.raises(CommandError, match="NOPERM"):
            await refused.wait_live()
        await allowed.wait_live()
        await ear.until(lost=1)
        assert not refused.live
        await hub.aclose()


# --- a node of a cluster ---------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster_node() -> AsyncIterator[Redis]:
    """One node that holds all slots."""
    async with EmbeddedRedis(arguments=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as server:
        client = await Redis.from_url(server.url, options=QUICK).connect()
        await client.link.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with asyncio.timeout(WAIT_S):
            while b"cluster_state:ok" not in await _info(client):
                await asyncio.sleep(0.01)
        yield client
        await client.aclose()


async def _info(client: Redis) -> bytes:
    found = await client.link.call("CLUSTER", "INFO")
    return found if isinstance(found, bytes) else found.encode()


async def test_channel_whose_slot_goes_away_is_lost_and_restored_when_it_returns(cluster_node: Redis) -> None:
    moved, stays = Ear(), Ear()
    slot = await cluster_node.link.call("CLUSTER", "KEYSLOT", "moved")
    assert slot != await cluster_node.link.call("CLUSTER", "KEYSLOT", "stays")
    subscription = await cluster_node.hub.subscribe("moved", moved, kind="shard")
    await cluster_node.hub.subscribe("stays", stays, kind="shard")
    await cluster_node.link.call("CLUSTER", "DELSLOTS", slot)
    await moved.until(lost=1)
    assert not subscription.live
    await cluster_node.link.call("CLUSTER", "ADDSLOTS", slot)
    await moved.until(restored=1)
    assert await cluster_node.execute_command("SPUBLISH", "moved", "x") == 1
    assert (stays.lost, cluster_node.hub.connected) == (0, True)
