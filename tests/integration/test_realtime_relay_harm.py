"""What clients, other programs on the Redis and bad luck may do to relaying, and what they cannot."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from test_realtime_relay import Pair, pair

from flotta.errors import WireError
from flotta.realtime import Server
from flotta.realtime.engine.request import Request
from flotta.realtime.engineio.handshake import Refused
from flotta.realtime.relay import asks, leases, pace
from flotta.realtime.relay.relay import Relay
from flotta.realtime.relay.wire import Answer, Echo
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy
from free_ports import free_port
from realtime_fixtures import until
from realtime_moves import SCOPE, Wanderer, World, move, world


def _relay(made: World, number: int) -> Any:
    return made.servers[number]._relay


async def _cut_here(made: World) -> Wanderer:
    """A session that has left instance 0 and has not reached instance 1, which hears nothing."""
    wanderer = Wanderer(made.servers[0])
    await wanderer.join("room")
    made.heard.clear()
    wanderer.upgrade_at(made.servers[1])
    await until(lambda: wanderer.websocket.got == ["3probe"])
    made.gates[0].is_open = False
    wanderer.switch()
    await until(lambda: made.gates[0].held)
    made.gates[0].let()
    await until(lambda: _relay(made, 1)._arrivals._coming and made.gates[0].held)
    made.gates[1].is_open = False
    made.gates[0].open()
    await until(lambda: made.relay(0).moved_away == 1)
    for _ in range(2):
        await made.turn()
    return wanderer


async def test_session_whose_tunnel_ends_while_it_travels_ends_where_it_arrives_with_its_handlers(
    valkey_url: str, unique: str
) -> None:
    async with world(valkey_url, unique, 2) as made:
        wanderer = await _cut_here(made)
        wanderer.near.broken()
        assert wanderer.websocket.closed is not None
        assert wanderer.websocket.closed[0] == 1012
        made.gates[1].open()
        await until(lambda: made.heard)
        assert made.heard == [("disconnect", 1, "transport error")]
        assert made.servers[1].stats.connections == made.servers[1].stats.sockets == 0
        moved = _relay(made, 1)._arrivals._lost
        assert not moved


async def test_session_that_cannot_be_read_ends_where_it_arrives(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(valkey_url, unique, 2) as made:
        wanderer = await _cut_here(made)

        def unreadable(*_: Any) -> None:
            raise WireError("moved session", "no user")

        monkeypatch.setattr(_relay(made, 1)._arrivals.travelling, "arrive", unreadable)
        made.gates[1].open()
        await until(lambda: made.heard)
        assert made.heard == [("disconnect", 1, "transport error")]
        assert wanderer.websocket.closed is not None
        assert made.servers[1].stats.connections == made.servers[1].stats.sockets == 0
        assert not made.servers[1]._core.delivery._holds


@pytest.mark.parametrize("end", ["near", "far"])
async def test_end_that_breaks_a_tunnel_tells_the_other(valkey_url: str, unique: str, end: str) -> None:
    async with world(valkey_url, unique, 2) as made:
        wanderer = Wanderer(made.servers[0])
        await wanderer.join()
        await made.servers[0].save_session(wanderer.socket_sid, {"stays": object()})
        made.heard.clear()
        wanderer.upgrade_at(made.servers[1])
        await until(lambda: wanderer.websocket.got == ["3probe"])
        wanderer.switch()
        await until(lambda: wanderer.client.transport.name == "websocket")
        [far] = _relay(made, 0)._far.values()
        (wanderer.near if end == "near" else far).broken()
        await until(lambda: wanderer.websocket.closed and made.heard)
        assert made.heard == [("disconnect", 0, "transport error")]
        assert made.relay(0).tunnels == made.relay(1).tunnels == 0


async def test_limit_per_address_holds_for_sessions_that_move(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, 2, connections_per_ip_max=2) as made:
        there = made.servers[1]
        for number in range(2):
            wanderer = Wanderer(made.servers[0])
            await wanderer.join()
            wanderer.upgrade_at(there)
            await until(lambda got=wanderer.websocket.got: got == ["3probe"])
            wanderer.switch()
            await until(lambda count=number + 1: made.relay(1).moved_here == count)
        third = Wanderer(made.servers[0])  # at the first instance there is room again
        await third.join()
        query = f"EIO=4&transport=websocket&sid={third.sid}".encode()
        facts = Request(scope={**SCOPE, "type": "websocket", "query_string": query}).facts()
        refusal = there._core.admit(facts)
        assert refusal is not None
        assert refusal.reason is Refused.CROWDED
        wanderer.near.lost("transport close")
        await until(lambda: there._core.admit(facts) is None)
        third.upgrade_at(there)
        third.near.lost("transport close")  # a WebSocket that comes to nothing is counted off too
        await until(lambda: made.relay(1).tunnels == 0)
        assert there._core.addresses._counts == {"192.0.2.7": 1}


async def test_bodies_on_their_way_to_one_instance_are_bounded_and_none_is_lost(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "BODIES_BYTES_MAX", 250_000)
    async with pair(valkey_url, unique) as two:
        spent: list[int] = []
        relay: Any = two.there._relay
        ask = relay._asks._ask

        async def noting(*args: Any) -> Any:
            spent.append(relay._asks._budget.spent_bytes)
            return await ask(*args)

        relay._asks._ask = noting
        sids = [await two.join() for _ in range(12)]
        spent.clear()
        body = '42["none","' + "x" * 100_000 + '"]'
        answers = await asyncio.gather(*(two.post(sid, body) for sid in sids))
        assert [answer.text for answer in answers] == ["ok"] * 12
        assert 100_000 < max(spent) <= 250_000
        assert relay._asks._budget.spent_bytes == 0


async def test_answers_to_a_crowd_that_polls_do_not_cost_an_instance_its_subscription(
    own_valkey: EmbeddedRedis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "ANSWERS_BYTES_MAX", 500_000)
    monkeypatch.setattr(asks, "ANSWER_TIMEOUT_S", 20.0)
    async with FaultProxy(own_valkey.url) as proxy, pair(own_valkey.url, unique, far_url=proxy.url) as two:
        await two.clients[0].link.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
        sids = [await two.join() for _ in range(60)]
        waiting = [asyncio.create_task(two.get(sid)) for sid in sids]
        await until(lambda: all(_relayed_transport(two, sid).getting for sid in sids))
        home: Any = two.home._relay
        proxy.pause("down")  # that instance is slow to read, for a moment
        await two.home.emit("news", "x" * 250_000)
        await until(lambda: home._asks._answers._waiting)
        await until(lambda: not home._post._in_flight)  # Redis has all that was sent
        assert 250_000 < home._asks._answers.spent_bytes <= 500_000
        proxy.resume("down")
        answers = await asyncio.gather(*waiting)
        assert {(answer.status_code, len(answer.text)) for answer in answers} == {(200, 250_013)}
        await until(lambda: not home._asks._serving)
        assert home._asks._answers.spent_bytes == 0
        assert two.there.stats.relay.waiting == 0


async def test_junk_inside_a_message_is_counted_like_junk_outside(valkey_url: str, unique: str) -> None:
    async with world(valkey_url, unique, 2) as made:
        home = made.servers[0]
        wanderer = Wanderer(home)
        await wanderer.join()
        asking = asyncio.create_task(home.call("question", 1, to=wanderer.socket_sid))
        sid = wanderer.socket_sid
        await move(made, wanderer)
        channel = _relay(made, 0)._post.channel("ins0")
        await made.clients[1].publish(channel, b"\x94\xa5acked\xb4" + sid.encode() + b"\x01\xc4\x01\x01")
        await until(lambda: made.relay(0).junk == 1)
        wanderer.send('431["reply"]')
        assert await asking == "reply"


def _without_beats(sio: Server) -> Relay:
    """The relay of a server whose leases the test looks after."""
    relay = sio._relay
    assert relay is not None
    assert relay._leases._beating is not None
    relay._leases._beating.cancel()
    return relay


async def test_lease_that_redis_lost_is_claimed_again_and_nobody_is_given_up(valkey_url: str, unique: str) -> None:
    async with pair(valkey_url, unique) as two:
        home, there = _without_beats(two.home), _without_beats(two.there)
        sid = await two.join()
        waiting = asyncio.create_task(two.get(sid))
        await until(lambda: there.stats.waiting == 1)
        lost = ("DEL", home._leases._key("home"))
        for _ in range(2):
            await two.clients[0].link.call(*lost)
            await there._leases._look()
            await home._leases._refresh()
            await there._leases._look()
        assert not waiting.done()
        await two.clients[0].link.call(*lost)
        await there._leases._look()
        await there._leases._look()  # it is not claimed again: nobody lives there
        assert (await waiting).json()["code"] == 1


async def test_who_is_gone_is_seen_on_a_cluster_of_one_node_too(unique: str) -> None:
    """Leases of several instances lie in different slots there."""
    async with EmbeddedRedis(arguments=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as server:
        async with await Redis.from_url(server.url).connect() as admin, asyncio.timeout(20):
            await admin.link.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while "cluster_state:ok" not in str(await admin.link.call("CLUSTER", "INFO")):
                await asyncio.sleep(0.01)
        async with pair(server.url, unique) as two:
            there: Any = _without_beats(two.there)
            gone: list[str] = []
            there._leases._watched, there._leases._on_gone = lambda: ["home", "dead"], gone.append
            await there._leases._look()
            assert gone == ["dead"]


async def test_nobody_is_given_up_while_redis_has_no_memory_for_leases(own_valkey: EmbeddedRedis, unique: str) -> None:
    async with pair(own_valkey.url, unique) as two:
        home, there = _without_beats(two.home), _without_beats(two.there)
        waiting = asyncio.create_task(two.get(await two.join()))
        await until(lambda: there.stats.waiting == 1)
        await two.clients[0].config_set("maxmemory", 1)
        await two.clients[0].delete(home._leases._key("home"))  # it has run out
        for _ in range(3):
            await there._leases._refresh()
            await there._leases._look()
        await two.clients[0].config_set("maxmemory", 0)
        for _ in range(2):  # it beats more often than the one that it looks for
            await there._leases._refresh()
            await there._leases._look()
        await home._leases._refresh()
        await there._leases._look()
        await two.home.emit("here")
        assert (await waiting).text == '42["here"]'


async def test_instance_that_slept_while_another_took_its_name_goes_on_under_a_new_one(
    own_valkey: EmbeddedRedis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    monkeypatch.setattr(leases, "TTL_S", 1.0)
    async with pair(own_valkey.url, unique) as two:
        sid = await two.join()
        home: Any = two.home._relay
        home._leases._beating.cancel()  # it sleeps
        await asyncio.sleep(1.3)
        newcomer = Server(own_valkey.url, channel_prefix=unique, instance="home")
        await newcomer.start()
        try:
            home._leases.start()
            await until(lambda: two.home.stats.instance != "home")
            assert newcomer.stats.instance == "home"
            assert (await two.get(sid)).json()["code"] == 1  # nobody knows where it is
            await two.home.emit("here")
            assert (await two.http.get(f"{two.home_url}&sid={sid}")).text == '42["here"]'
            fresh = await two.join()  # opened there under the new name, asked for elsewhere
            assert fresh.startswith(two.home.stats.instance)
        finally:
            await newcomer.aclose()


async def _die(two: Pair) -> None:
    """The instance that hands requests on, as its kernel does it for a killed process."""
    await two.clients[1].hub.aclose()
    await two.clients[1].link.aclose(drain_s=0.0)
    home: Any = two.home
    async with asyncio.timeout(5):
        while await home._relay._post.is_there("ther"):  # Redis reads the end when it gets to it
            await asyncio.sleep(0.005)


async def _same_get(two: Pair, sid: str, mark: str = "one") -> httpx.Response:
    """What a proxy sends to the next upstream when the first has died."""
    return await two.http.get(f"{two.home_url}&t={mark}&sid={sid}")


def _relayed_get(two: Pair, sid: str, mark: str = "one") -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(two.http.get(f"{two.there_url}&t={mark}&sid={sid}"))


async def test_answer_that_a_dying_instance_had_is_given_to_the_same_request_again(
    valkey_url: str, unique: str
) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        heard: list[Any] = []
        relay: Any = two.there._relay
        relay._takers[Answer] = heard.append  # it dies before it hands anything on
        waiting = _relayed_get(two, sid)
        await until(lambda: relay.stats.waiting == 1)
        await two.home.emit("n", 1)
        await until(lambda: heard)
        await _die(two)
        await two.home.emit("n", 2)
        assert (await _same_get(two, sid)).text == '42["n",1]'
        assert (await _same_get(two, sid, "two")).text == '42["n",2]'
        waiting.cancel()


async def test_request_that_waits_at_a_dying_instance_is_answered_when_it_comes_again_and_the_session_goes_on(
    valkey_url: str, unique: str
) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        waiting = _relayed_get(two, sid)
        await until(lambda: _relayed_transport(two, sid).getting)
        await _die(two)
        assert (await _same_get(two, sid)).text == "6"
        await two.home.emit("n", 1)
        assert (await _same_get(two, sid, "two")).text == '42["n",1]'
        waiting.cancel()


def _relayed_transport(two: Pair, sid: str) -> Any:
    return two.home._core.clients[sid].transport


async def test_same_query_is_another_request_while_the_instance_that_handed_on_the_first_lives(
    valkey_url: str, unique: str
) -> None:
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        for number in range(3):  # a client that counts seconds
            await two.home.emit("n", number)
            assert (await _relayed_get(two, sid)).text == f'42["n",{number}]'
            await two.home.emit("m", number)
            assert (await _same_get(two, sid)).text == f'42["m",{number}]'
        assert _relayed_transport(two, sid).relayed is None  # nothing is kept for what came here


@pytest.mark.parametrize("mark", ["&t=one", ""])
async def test_session_ends_when_nobody_asks_again_for_an_answer_that_nobody_heard(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setattr(asks, "REPEAT_S", 0.2 if mark else 60.0)
    async with pair(valkey_url, unique) as two:
        sid = await two.join()
        waiting = asyncio.create_task(two.http.get(f"{two.there_url}{mark}&sid={sid}"))
        await until(lambda: _relayed_transport(two, sid).getting)
        await _die(two)
        await two.home.emit("n", 1)
        await until(lambda: two.home.stats.ended == {"transport error": 1})
        waiting.cancel()


# --- tunnels of sessions that cannot move ---


async def _tunnelled(made: World, count: int) -> list[Wanderer]:
    """Sessions of instance 0 whose WebSockets stay relayed by instance 1."""
    _relay(made, 0)._ground.possible = False
    wanderers = [Wanderer(made.servers[0]) for _ in range(count)]
    for wanderer in wanderers:
        await wanderer.join()
        wanderer.upgrade_at(made.servers[1])
        await until(lambda wanderer=wanderer: wanderer.websocket.got == ["3probe"])
        wanderer.switch()
    await until(lambda: all(wanderer.client.transport.name == "websocket" for wanderer in wanderers))
    return wanderers


async def test_large_event_for_many_tunnels_does_not_cost_an_instance_its_subscription(
    own_valkey: EmbeddedRedis, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "WAY_BYTES_MAX", 500_000)
    monkeypatch.setattr(pace, "MARK_BYTES", 100_000)
    monkeypatch.setattr(pace, "ECHO_TIMEOUT_S", 30.0)
    async with FaultProxy(own_valkey.url) as proxy, world(own_valkey.url, unique, 2, far_url=proxy.url) as made:
        wanderers = await _tunnelled(made, 40)
        await made.clients[0].link.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
        home = _relay(made, 0)._post
        proxy.pause("down")  # that instance is slow to read, for a moment
        await made.servers[0].emit("news", "x" * 250_000)
        await made.servers[0].emit("end")
        await until(lambda: home.pace.waiting and not home._in_flight)  # Redis has all that was sent
        proxy.resume("down")
        await until(lambda: all(wanderer.websocket.got[-1:] == ['42["end"]'] for wanderer in wanderers))
        assert {len(wanderer.websocket.got[-2]) for wanderer in wanderers} == {250_013}
        assert home.pace.waiting == 0
        assert made.relay(1).tunnels == 40
        assert made.relay(1).junk == 0


async def test_instance_that_answers_no_echo_is_waited_for_a_while_only(
    valkey_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an older version."""
    monkeypatch.setattr(pace, "WAY_BYTES_MAX", 10_000)
    monkeypatch.setattr(pace, "MARK_BYTES", 8_000)
    monkeypatch.setattr(pace, "ECHO_TIMEOUT_S", 0.05)
    async with world(valkey_url, unique, 2) as made:
        [wanderer] = await _tunnelled(made, 1)
        del _relay(made, 1)._takers[Echo]
        for number in range(10):
            await made.servers[0].emit("n", (number, "x" * 5_000))
        await until(lambda: len([got for got in wanderer.websocket.got if str(got).startswith('42["n"')]) == 10)
        assert [str(got)[6:9] for got in wanderer.websocket.got[-10:]] == [f",{n}," for n in range(10)]
