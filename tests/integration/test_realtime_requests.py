"""Questions between servers: what ends them, what is dropped, what junk on the answers' channels does."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest

from flotta.errors import AckTimeout, ClusterTimeout, LinkUnavailable, RealtimeError
from flotta.realtime import Server
from flotta.realtime.adapters.pending import Requests
from flotta.realtime.api.question import Question
from flotta.redis import Redis
from realtime_fixtures import until
from realtime_members import attach

# --- the requests of one adapter --------------------------------------------------------------------------------------


def _as_list(answer: Any) -> list[Any]:
    return [answer]


async def test_a_request_ends_with_the_last_answer_and_later_ones_are_dropped() -> None:
    requests, sent = Requests("me"), asyncio.Queue[str]()
    asked = asyncio.create_task(
        requests.gather("q", expected=2, timeout_s=5, send=sent.put_nowait, read=_as_list), name="asks"
    )
    request_id = await sent.get()
    requests.answer(request_id, 1, "a")
    requests.answer(request_id, 1, "a")  # the same server again
    requests.answer("me-unknown", 1)
    requests.answer("another server's", 1)
    assert len(requests) == 1
    requests.answer(request_id, 2, "b")
    requests.answer(request_id, 3, "c")  # more than were asked
    assert await asked == [1, 2]
    requests.answer(request_id, 4, "d")
    assert (len(requests), requests.dropped) == (0, 4)


async def test_a_request_ends_in_time_with_what_came() -> None:
    requests, sent = Requests("me"), asyncio.Queue[str]()
    asked = asyncio.create_task(
        requests.gather("q", expected=3, timeout_s=0.05, send=sent.put_nowait, read=_as_list), name="asks"
    )
    requests.answer(await sent.get(), "one")
    with pytest.raises(ClusterTimeout) as caught:
        await asked
    assert (caught.value.expected, caught.value.answered, caught.value.answers) == (3, 1, ["one"])
    assert len(requests) == 0


async def test_requests_are_bounded_and_leave_nothing_behind() -> None:
    requests = Requests("me", pending_max=2)
    waiting = [
        asyncio.create_task(
            requests.gather("q", expected=1, timeout_s=60, send=lambda _: None, read=_as_list), name="asks"
        )
        for _ in range(2)
    ]
    await until(lambda: len(requests) == 2)
    with pytest.raises(RealtimeError, match="fewer at a time"):
        await requests.gather("q", expected=1, timeout_s=60, send=lambda _: None, read=_as_list)
    with pytest.raises(RealtimeError):
        requests.listen(expected=1, on_count=print, on_ack=print, on_gone=print, timeout_s=60, send=print)
    waiting[0].cancel()
    with suppress(asyncio.CancelledError):
        await waiting[0]
    requests.fail(lambda: LinkUnavailable("here", "gone"))
    with pytest.raises(LinkUnavailable):
        await waiting[1]
    assert len(requests) == 0

    def refuse(_request_id: str) -> None:
        raise TypeError("cannot travel")

    with pytest.raises(TypeError):
        await requests.gather("q", expected=1, timeout_s=60, send=refuse, read=_as_list)
    with pytest.raises(TypeError):
        requests.listen(expected=1, on_count=print, on_ack=print, on_gone=print, timeout_s=60, send=refuse)
    assert len(requests) == 0


async def test_acknowledgements_count_up_to_what_the_servers_announced() -> None:
    requests, counts, acks = Requests("me"), list[int](), list[list[Any]]()
    sent = list[str]()
    gone = list[None]()
    heard: Any = {"on_count": counts.append, "on_ack": acks.append, "on_gone": lambda: gone.append(None)}
    request_id = requests.listen(expected=2, **heard, timeout_s=60, send=sent.append)
    assert sent == [request_id]
    requests.ack(request_id, ["before any count"])
    requests.gone(request_id)
    requests.count(request_id, 3, "a")
    requests.count(request_id, 9, "a")
    requests.ack(request_id, [1])
    requests.count(request_id, 0, "b")
    requests.count(request_id, 7, "c")
    requests.gone(request_id)
    assert len(requests) == 1
    requests.ack(request_id, [2])
    assert len(requests) == 0
    requests.ack(request_id, [3])
    requests.gone(request_id)
    assert (counts, acks, gone, requests.dropped) == ([3, 0], [[1], [2]], [None], 6)
    requests.listen(expected=1, **heard, timeout_s=0.01, send=sent.append)
    await until(lambda: len(requests) == 0)


async def test_a_question_is_over_when_nothing_more_can_come() -> None:
    question = Question()
    question.on_count(2)
    question.on_ack(["a"])
    question.sent(2)
    waiting = asyncio.create_task(question.wait(), name="waits")
    question.on_count(1)
    question.on_ack(["b"])
    await asyncio.sleep(0)
    assert not waiting.done()
    question.on_gone()
    await asyncio.wait_for(waiting, 1)
    assert (question.complete, question.answers, question.clients) == (False, [["a"], ["b"]], 3)
    first = Question(first=True)
    first.on_ack([1])
    await asyncio.wait_for(first.wait(), 1)


# --- servers on a real Redis ------------------------------------------------------------------------------------------


@pytest.fixture
async def pair(redis: Redis, unique: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers of one process with one Redis client; any name that begins with /t/ is a namespace."""
    servers = [Server(redis, channel_prefix=unique, request_timeout_s=1.0) for _ in range(2)]
    for sio in servers:
        sio.on("hello", lambda name, sid: name, namespace=re.compile(r"/t/\d+"))
        await sio.start()
    yield servers[0], servers[1]
    for sio in servers:
        await sio.aclose()


async def test_two_servers_of_one_process_are_counted_as_two(pair: Any, redis: Redis, unique: str) -> None:
    one, two = pair
    assert (await one.server_count(), await two.server_count()) == (2, 2)
    assert await redis.pubsub_numsub(f"{unique}-request#/#") == [(f"{unique}-request#/#".encode(), 2)]
    await attach(two)
    assert len(await one.fetch_sockets()) == 1
    await two.aclose()
    async with asyncio.timeout(5):
        while await one.server_count() != 1:  # Redis takes note of it after the call
            await asyncio.sleep(0.005)
    assert await one.fetch_sockets() == []


class _Third:
    """Someone who is counted as a server and answers what the test says."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def on_message(self, _channel: bytes, payload: bytes) -> None:
        fields = json.loads(payload) if payload[:1] == b"{" else msgpack.unpackb(payload)
        if fields.get("requestId"):
            self.asked.put_nowait(fields)

    def on_lost(self) -> None: ...
    def on_restored(self) -> None: ...


@pytest.fixture
async def third(valkey_url: str, unique: str) -> AsyncIterator[_Third]:
    listener = _Third()
    async with Redis.from_url(valkey_url) as redis:
        await redis.hub.subscribe(f"{unique}-request#/#", listener)
        yield listener


async def test_junk_answers_are_counted_and_the_good_one_after_them_is_taken(
    pair: Any, third: _Third, redis: Redis, unique: str
) -> None:
    one, two = pair
    await attach(two)
    fetching = asyncio.create_task(one.fetch_sockets(timeout_s=5), name="fetches")
    request = await third.asked.get()
    junk = [
        {"sockets": 5},
        {"sockets": [{}]},
        {"sockets": [{"id": "x", "rooms": [{}]}]},
        {"rooms": []},
        {"type": 8, "clientCount": -1},
        {"type": 8, "clientCount": 2**60},
    ]
    channels = [f"{unique}-response#/#", f"{unique}-response#/#{request['uid']}#"]
    for channel in channels:
        for fields in junk:
            await redis.publish(channel, json.dumps({"requestId": request["requestId"], **fields}))
        await redis.publish(channel, request["uid"].encode() + b"\xc1 no message at all")
        await redis.publish(channel, b'{"requestId":["%b"]}' % request["uid"].encode())
        await redis.publish(channel, b"not for this server")
    # Acknowledgements and counts for what is no broadcast are nobody's.
    await redis.publish(channels[0], json.dumps({"requestId": request["requestId"], "type": 9, "packet": 1}))
    assert not fetching.done()
    good = {"requestId": request["requestId"], "sockets": [{"id": "s", "rooms": ["s", 7], "data": {"a": 1}}]}
    await redis.publish(channels[0], json.dumps(good))
    found = {socket.id: socket for socket in await fetching}
    assert len(found) == 2
    assert (found["s"].rooms, found["s"].data) == ({"s", "7"}, {"a": 1})
    assert one.stats.adapter.junk == 2 * (len(junk) + 2)
    await redis.publish(channels[0], json.dumps(good))  # too late
    await one.emit("end")
    await until(lambda: one._core.adapter._requests.dropped >= 2)
    assert two.stats.adapter.junk == 0  # another server's answers are not even read


async def test_server_that_is_counted_and_silent_costs_the_time_and_no_more(pair: Any, third: _Third) -> None:
    one, two = pair
    await attach(one)
    await attach(two)
    with pytest.raises(ClusterTimeout) as caught:
        await one.fetch_sockets()
    assert (caught.value.expected, caught.value.answered, len(caught.value.answers)) == (2, 1, 2)
    with pytest.raises(ClusterTimeout) as caught:
        await one.all_rooms()
    assert len(caught.value.answers) == 2
    with pytest.raises(ClusterTimeout) as caught:
        await one.server_side_call("nobody handles it")
    assert caught.value.answers == [None]
    with pytest.raises(AckTimeout):
        await one.call("e", to="AAAAAAAAAAAAAAAAAAAA", timeout_s=0.2)
    await until(lambda: len(one._core.adapter._requests) == 0)  # the call's, when its own time is over
    assert not third.asked.empty()


async def test_who_leaves_while_asked_ends_the_asking_at_once(pair: Any) -> None:
    one, _two = pair
    await attach(one)
    await attach(one)
    first, second = await one.fetch_sockets(local=True)
    calling = asyncio.create_task(one.call("e", to=first.id, timeout_s=60), name="calls")
    asking = asyncio.create_task(one.call_all("e", timeout_s=60), name="asks")
    async with asyncio.timeout(5):
        while one.stats.adapter.published < 1:  # call_all has asked the other server, and with it everybody
            await asyncio.sleep(0.005)
        await until(lambda: one._core.spaces["/"].rooms.get(second.id).last_ack >= 1)
        await one.disconnect(first.id)
        await one.disconnect(second.id)
        with pytest.raises(AckTimeout):
            await calling
        with pytest.raises(ClusterTimeout) as caught:
            await asking
    assert (caught.value.expected, caught.value.answers) == (2, [])


@pytest.mark.parametrize("adapter", ["classic", "sharded", "streams"])
async def test_who_leaves_another_server_while_asked_ends_the_asking_at_once(
    adapter: Any, redis: Redis, unique: str
) -> None:
    one, two = (Server(redis, adapter=adapter, channel_prefix=unique, stream_name=unique) for _ in range(2))
    await one.start()
    await two.start()
    try:
        first, second, third = [await attach(two) for _ in range(3)]
        calling = asyncio.create_task(one.call("e", to=first.sid, timeout_s=60), name="calls")
        asking = asyncio.create_task(one.call_all("q", timeout_s=60), name="asks")
        async with asyncio.timeout(10):
            await until(lambda: len(first.got) == 2 and len(third.got) == 1)
            first.leave()
            with pytest.raises(AckTimeout) as alone:
                await calling
            assert alone.value.gone
            await two.disconnect(second.sid)
            [question] = third.got
            third.client.receive(f'43{question[2 : question.index("[")]}["here"]')
            with pytest.raises(ClusterTimeout) as caught:
                await asking
        assert (caught.value.expected, caught.value.answers) == (3, ["here"])
        assert all(not sio.stats.adapter.junk for sio in (one, two))  # type: ignore[union-attr]
    finally:
        await one.aclose()
        await two.aclose()


async def test_an_event_for_many_is_encoded_once_and_each_answer_counts_once(pair: Any) -> None:
    one, _two = pair
    clients = [await attach(one) for _ in range(3)]
    sids = [socket.id for socket in await one.fetch_sockets(local=True)]
    early = asyncio.create_task(one.call("early", to=sids[0], timeout_s=60), name="calls")
    await until(lambda: any('["early"]' in packet for client in clients for packet in client.got))
    asking = asyncio.create_task(one.call_all("q", timeout_s=60, local=True), name="asks")
    await until(lambda: all('422["q"]' in client.got for client in clients))
    for number, client in enumerate(clients):
        client.client.receive(f"432[{number},true]")
        client.client.receive(f"432[{number}]")  # again: dropped
    assert await asking == [(0, True), (1, True), (2, True)]
    holder = next(client for client in clients if any('["early"]' in packet for packet in client.got))
    holder.client.receive('431["late but its own"]')
    assert await early == "late but its own"


async def test_dynamic_namespace_is_reached_from_a_server_where_nobody_is_in_it(pair: Any) -> None:
    one, two = pair
    client = await attach(one)
    client.client.receive("40/t/7")
    await until(lambda: any(packet.startswith("40/t/7,") for packet in client.got))
    await two.emit("news", 1, namespace="/t/7")
    await until(lambda: '42/t/7,["news",1]' in client.got)
    (socket,) = await two.fetch_sockets(namespace="/t/7")
    assert (socket.namespace, await two.server_count(namespace="/t/7")) == ("/t/7", 2)
    assert await two.all_rooms(namespace="/t/7") == {socket.id}
    calling = asyncio.create_task(socket.call("q", timeout_s=5), name="calls")
    await until(lambda: '42/t/7,1["q"]' in client.got)
    client.client.receive('43/t/7,1["a"]')
    assert await calling == "a"
    with pytest.raises(RealtimeError):
        await two.fetch_sockets(namespace="/never/heard/of")


async def test_session_that_cannot_travel_shows_as_none(pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = pair
    await attach(one)
    (socket,) = await one.fetch_sockets()
    await one.save_session(socket.id, {"lock": asyncio.Lock()})
    for sio in (one, two, two):
        (found,) = await sio.fetch_sockets()
        assert found.data is None
    assert capsys.readouterr().out.count("a session cannot travel") == 1
    await one.save_session(socket.id, {"blob": b"\x00", "n": 1.5})
    (found,) = await two.fetch_sockets()
    assert found.data == {"blob": b"\x00", "n": 1.5}


async def test_close_ends_the_whole_connection_and_disconnect_only_the_namespace(pair: Any) -> None:
    one, two = pair
    members = [await attach(one), await attach(one)]
    for member in members:
        member.client.receive("40/t/1")
        await until(lambda member=member: len(member.client.sockets) == 2 and member.got)
    await two.disconnect_sockets(to=members[0].sid)
    await until(lambda: members[0].got[-1] == "41")
    assert list(members[0].client.sockets) == ["/t/1"]
    await two.disconnect_sockets(to=members[1].sid, close=True)
    await until(lambda: members[1].client.over)
    assert sorted(members[1].got[-2:]) == ["41", "41/t/1,"]
    assert (len(members[1].client.sockets), one.stats.connections) == (0, 1)
