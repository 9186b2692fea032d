"""The network fails: silence, cuts inside a reply, slices, refusals, wrong TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trustme
from structlog.testing import capture_logs

from flotta.errors import AmbiguousOutcome, Closed, LinkUnavailable, NotApplied, ServerTooOld
from flotta.redis import Link, LinkOptions, Redis
from flotta.redis.embedded import EmbeddedRedis
from flotta.testing import FaultProxy

pytestmark = pytest.mark.faults
HELLO_REPLY = b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.1\r\n$5\r\nproto\r\n:3\r\n"
SLOW_SCRIPT = "local ends = os.clock() + 2.0; while os.clock() < ends do end; return 'slow'"
QUICK = LinkOptions(command_timeout_s=0.6, connect_timeout_s=0.6, heartbeat_s=0.3, reconnect_min_s=0.01)


@pytest.fixture
async def proxy(own_valkey: EmbeddedRedis) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(own_valkey.url) as made:
        yield made


async def test_silent_peer_fails_in_time_what_was_written_and_what_was_not(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=QUICK)
    loop = asyncio.get_running_loop()
    proxy.pause()
    started_s = loop.time()
    results = await asyncio.gather(*(link.call("INCR", "n") for _ in range(100)), return_exceptions=True)
    assert {type(result) for result in results} == {AmbiguousOutcome}
    assert loop.time() - started_s < 2 * 0.6  # all together: nobody waits for another's time to run out
    with pytest.raises(LinkUnavailable):
        await link.call("INCR", "n")
    proxy.resume()
    # What was held back reaches the server now: "may have run" was the truth.
    assert await link.call("INCR", "n", timeout_s=10) in {1, 101}
    await link.aclose()


async def test_half_open_link_is_noticed_by_the_heartbeat(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=QUICK)
    proxy.drop("up")
    async with asyncio.timeout(3):
        while link.connected:
            await asyncio.sleep(0.01)
    proxy.restore()
    assert await link.call("PING", timeout_s=10) == b"PONG"
    await link.aclose()


@pytest.mark.parametrize("position", [0, 1, 5, 100, 1_000, 9_999])
async def test_cut_inside_a_reply_fails_that_call_and_no_later_one(proxy: FaultProxy, position: int) -> None:
    link = await Link.connect(proxy.url, options=LinkOptions(reconnect_min_s=0.01))
    await link.call("SET", "k", b"x" * 10_000)
    proxy.cut_after(position)
    with pytest.raises(AmbiguousOutcome):
        await link.call("GET", "k")
    assert await link.call("GET", "k") == b"x" * 10_000
    assert link.stats.connections == 2
    await link.aclose()


async def test_cuts_under_load_explain_every_increment(proxy: FaultProxy) -> None:
    options = LinkOptions(reconnect_min_s=0.01, reconnect_max_s=0.02)
    client = await Redis.from_url(proxy.url, options=options).connect()
    ends: Counter[str] = Counter()
    is_over = asyncio.Event()

    async def caller() -> None:
        while not is_over.is_set():
            try:
                await client.incr("n")
                ends["applied"] += 1
            except AmbiguousOutcome:
                ends["ambiguous"] += 1
            except NotApplied:
                ends["not applied"] += 1

    callers = [asyncio.create_task(caller()) for _ in range(50)]
    for bytes_until_cut in range(500, 20_000, 971):
        connections = client.link.stats.connections
        proxy.cut_after(bytes_until_cut, "down" if bytes_until_cut % 2 else "up")
        async with asyncio.timeout(10):
            while client.link.stats.connections == connections:
                await asyncio.sleep(0.001)
    is_over.set()
    await asyncio.gather(*callers)
    counter = int(await client.get("n"))
    assert ends["applied"] <= counter <= ends["applied"] + ends["ambiguous"]
    assert ends["ambiguous"] >= 20
    await client.aclose()


async def test_replies_in_slices_of_one_byte_are_whole(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url)
    proxy.slice_bytes = 1
    await link.call("HSET", "h", "field", "vàlue", "other", b"\r\n$5\r\n")
    replies = await asyncio.gather(*(link.call("ECHO", number) for number in range(200)), link.call("HGETALL", "h"))
    assert replies[:200] == [str(number).encode() for number in range(200)]
    assert replies[200] == {b"field": "vàlue".encode(), b"other": b"\r\n$5\r\n"}
    await link.aclose()


async def test_slow_reader_stops_the_writing_and_nothing_is_lost(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=LinkOptions(command_timeout_s=30))
    proxy.pause("up")
    value = b"x" * 1_000_000
    calls = [asyncio.ensure_future(link.call("SET", f"k{number}", value)) for number in range(40)]
    for _ in range(200):
        await asyncio.sleep(0)
    later = asyncio.ensure_future(link.call("ECHO", "later"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert link.stats.waiting >= 1, "the transport is full, so what comes later stays unwritten"
    proxy.resume()
    assert set(await asyncio.gather(*calls)) == {b"OK"}
    assert await later == b"later"
    await link.aclose()


async def test_refused_and_back(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=LinkOptions(reconnect_min_s=0.01))
    await proxy.refuse()
    while link.connected:
        await asyncio.sleep(0)
    waiting = asyncio.ensure_future(link.call("PING"))
    with pytest.raises(LinkUnavailable, match="refused"):
        await link.call("PING", timeout_s=0.05)
    await proxy.accept()
    assert await waiting == b"PONG"
    await link.aclose()


async def test_junk_ends_the_connection_with_a_reason() -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak_http, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LinkUnavailable, match="does not speak RESP"):
            await Link.connect(f"redis://127.0.0.1:{port}")


async def test_patient_call_does_not_take_the_time_limit_from_others(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=QUICK)
    slow = asyncio.ensure_future(link.call("EVAL", SLOW_SCRIPT, 0, timeout_s=20))
    with pytest.raises(AmbiguousOutcome, match=r"within 0\.6 s"):
        await link.call("ECHO", "behind it")
    assert not slow.done(), "the limit was that of the patient call"
    assert await slow == b"slow", "the slow script is no silent peer"
    assert link.stats.connections == 1
    await link.aclose()


async def test_patience_ends_with_the_call_that_asked_for_it(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=QUICK)
    assert await link.call("ECHO", "soon answered", timeout_s=60) == b"soon answered"
    proxy.pause()
    with pytest.raises(AmbiguousOutcome):
        await link.call("PING")
    async with asyncio.timeout(5):
        while link.connected:
            await asyncio.sleep(0.01)
    await link.aclose()


async def test_connection_lost_while_closing_is_not_brought_back(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=LinkOptions(reconnect_min_s=0.001, reconnect_max_s=0.001))
    proxy.pause("down")
    written = asyncio.ensure_future(link.call("ECHO", 1))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(link.aclose(drain_s=0.3))
    await asyncio.sleep(0)
    accepted = proxy.accepted
    proxy.cut()
    proxy.resume()
    with pytest.raises(AmbiguousOutcome):
        await written
    await closing
    assert proxy.accepted == accepted
    assert not link.connected
    with pytest.raises(Closed):
        link.call("PING")


async def test_error_names_the_command_as_written(proxy: FaultProxy) -> None:
    link = await Link.connect(proxy.url, options=QUICK)
    await proxy.refuse()
    while link.connected:
        await asyncio.sleep(0)
    for name in ("PING", b"PING"):
        for timeout_s in (None, 0.05):
            with pytest.raises(LinkUnavailable, match=r"^PING: no connection") as caught:
                await link.call(name, timeout_s=timeout_s)
            assert caught.value.command == "PING"
    await link.aclose()


async def test_flapping_connection_is_tried_less_and_less_and_logged_once() -> None:
    accepted: list[float] = []

    async def greet_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(asyncio.get_running_loop().time())
        await reader.read(1000)
        writer.write(HELLO_REPLY + b"+OK\r\n+OK\r\n+PONG\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet_and_hang_up, "127.0.0.1", 0)
    async with server:
        with capture_logs() as logs:
            port = server.sockets[0].getsockname()[1]
            link = Link(f"redis://127.0.0.1:{port}", options=LinkOptions(reconnect_min_s=0.02, reconnect_max_s=5))
            await link.start()
            async with asyncio.timeout(20):
                while len(accepted) < 6:
                    await asyncio.sleep(0.01)
            await link.aclose()
    assert accepted[5] - accepted[4] >= 0.02 * 2**4 / 2
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("warning", "redis link lost"),
        ("info", "redis link is up"),
    ]


async def test_server_that_is_too_old_is_named_with_what_is_needed() -> None:
    """The greeting of a server that no package index has any more: this one thing is spoken by a peer of ours."""

    async def speak_old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: bytes) -> None:
        await reader.read(1000)
        writer.write(hello + b"-ERR\r\n-ERR\r\n+PONG\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    # What a 5.0 says quotes the arguments, and so the password.
    unknown = b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `c4nary`, \r\n"
    for hello, version in ((HELLO_REPLY.replace(b"7.4.1", b"6.0.9"), "6.0.9"), (unknown, "older than 6.0")):
        server = await asyncio.start_server(lambda r, w, h=hello: speak_old(r, w, h), "127.0.0.1", 0)
        async with server:
            url = f"redis://:c4nary@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(ServerTooOld, match=r"6\.2 or newer is needed") as caught:
                await Link.connect(url)
            assert caught.value.version == version
            assert "c4nary" not in str(caught.value)


# --- TLS ----------------------------------------------------------------------------------------------------------
# The embedded server is built without TLS, so the proxy terminates it: for the client there is no difference.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def tls_proxy(own_valkey: EmbeddedRedis, authority: trustme.CA) -> AsyncIterator[FaultProxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with FaultProxy(own_valkey.url, tls=context) as made:
        yield made


def tls_url(proxy: FaultProxy, authority: trustme.CA, folder: object, host: str = "localhost") -> str:
    path = f"{folder}/ca.pem"
    authority.cert_pem.write_to_path(path)
    return f"rediss://{host}:{proxy.port}/0?ssl_ca_certs={path}"


async def test_tls_link_and_client_work_and_come_back(
    tls_proxy: FaultProxy, authority: trustme.CA, tmp_path: object
) -> None:
    client = await Redis.from_url(tls_url(tls_proxy, authority, tmp_path)).connect()
    value = b"x" * 300_000
    assert await client.set("k", value)
    assert await client.get("k") == value
    tls_proxy.cut()
    assert await client.get("k") == value
    pubsub = client.pubsub()
    await pubsub.subscribe("c")
    assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
    await pubsub.aclose()
    await client.aclose()


async def test_untrusted_authority_is_refused(tls_proxy: FaultProxy, tmp_path: object) -> None:
    with pytest.raises(LinkUnavailable, match="certificate refused"):
        await Link.connect(tls_url(tls_proxy, trustme.CA(), tmp_path), options=QUICK)


async def test_wrong_host_is_refused(tls_proxy: FaultProxy, authority: trustme.CA, tmp_path: object) -> None:
    with pytest.raises(LinkUnavailable, match="certificate refused"):
        await Link.connect(tls_url(tls_proxy, authority, tmp_path, host="127.0.0.1"), options=QUICK)


async def test_tls_towards_a_plain_port_is_refused(own_valkey: EmbeddedRedis) -> None:
    with pytest.raises(LinkUnavailable):
        await Link.connect(f"rediss://localhost:{own_valkey.port}", options=QUICK)


async def test_plain_towards_a_tls_port_is_refused(tls_proxy: FaultProxy) -> None:
    with pytest.raises(LinkUnavailable):
        await Link.connect(f"redis://localhost:{tls_proxy.port}", options=QUICK)
