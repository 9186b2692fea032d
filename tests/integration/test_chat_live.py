"""The chat over Socket.IO on three real instances, with the official client, the same on FastAPI and on Flask."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from chat_stage import HOME, Page, Stage, chat_stage, database, token
from flotta.postgres import EmbeddedPostgres
from free_ports import free_port
from realtime_balanced import nginx
from realtime_fixtures import NodePeer, node, node_modules, start_node
from supervisor_service import wait_until

__all__ = ["node", "node_modules", "start_node"]

SIGKILLS = 2
FOREIGN_S = 15.0
"""Longer than the lease of a dead instance's presence (6 s) and the start of the next one."""

Open = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="module", params=[("fastapi", "classic"), ("flask", "streams")], ids="-".join)
def chat(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    valkey_url: str,
    postgres_server: EmbeddedPostgres,
) -> Iterator[Stage]:
    framework, adapter = request.param
    folder, env = tmp_path_factory.mktemp("chat"), {"QUAY_ADAPTER": adapter}
    with chat_stage(folder, valkey_url, postgres_server, framework, env=env) as running:
        yield running


@pytest.fixture
def visit(chat: Stage, node: NodePeer) -> Open:
    """Open a page of a user; ``elsewhere``: on another instance than these pages."""
    names = (f"page {number}" for number in itertools.count(1))

    async def open_page(who: str, *, elsewhere: tuple[Page, ...] = ()) -> Page:
        taken = {(await page.hello())["served_by"]["instance"] for page in elsewhere}
        for _ in range(60):
            page = Page(node, next(names), who)
            if (await page.open(chat.url))["served_by"]["instance"] not in taken:
                return page
            await page.close()
        raise AssertionError(f"every connection came to {taken}")

    return open_page


async def test_what_one_says_everybody_in_the_room_hears_on_every_instance(chat: Stage, visit: Open) -> None:
    tokens = [chat.demo(name) for name in ("ada", "grace", "mary")]
    room_id = chat.room(tokens[0], tokens[1])
    ada = await visit(tokens[0])
    grace = await visit(tokens[1], elsewhere=(ada,))
    mary = await visit(tokens[2], elsewhere=(ada, grace))
    assert (await ada.hello())["served_by"]["framework"].lower() == chat.framework

    answer = await ada.say(room_id, "over Socket.IO")
    assert answer["ok"]["id"] == 1
    assert abs(answer["ok"]["at"] - time.time() * 1000) < 30_000
    assert await grace.heard("message", room=room_id) == [answer["ok"]]
    posted = await asyncio.to_thread(chat.post, tokens[1], room_id, "over REST")
    for page in (ada, grace):
        assert await page.heard("message", 2, room=room_id) == [answer["ok"], posted.json()]
    assert mary.told("message", room=room_id) == [], "who is not in the room hears nothing"


async def test_a_message_sent_again_is_told_again_with_the_same_number(chat: Stage, visit: Open) -> None:
    tokens = [chat.demo(name) for name in ("ada", "grace")]
    room_id = chat.room(*tokens)
    ada = await visit(tokens[0])
    grace = await visit(tokens[1], elsewhere=(ada,))
    client_id = str(uuid.uuid4())
    first = await ada.say(room_id, "hello", client_id)
    assert await ada.say(room_id, "hello", client_id) == first
    assert await grace.heard("message", 2, room=room_id) == [first["ok"]] * 2
    assert (await ada.say(room_id, "next"))["ok"]["id"] == 2


async def test_who_is_not_a_member_can_neither_speak_nor_type(chat: Stage, visit: Open) -> None:
    ada, grace = chat.demo("ada"), chat.demo("grace")
    room_id = chat.room(ada)
    inside, outside = await visit(ada), await visit(grace)
    assert (await outside.say(room_id, "let me in"))["error"]["code"] == "not_a_member"
    assert (await outside.ask("typing", {"room": room_id}))["error"]["code"] == "not_a_member"
    assert (await outside.ask("read", {"room": room_id, "id": 1}))["error"]["code"] == "not_a_member"
    for event, data in (("send", {"room": room_id}), ("send", None), ("typing", {"room": "1"}), ("read", [1])):
        assert (await inside.ask(event, data))["error"]["code"] == "does_not_fit", (event, data)
    assert (await inside.ask("send"))["error"]["code"] == "does_not_fit"
    assert (await inside.say(room_id, " \n "))["error"]["code"] == "does_not_fit"
    assert (await inside.say(room_id, "half a pair \ud800"))["error"]["code"] == "does_not_fit"
    assert inside.told("message", room=room_id) == inside.told("typing", room=room_id) == []


async def test_joining_and_leaving_over_rest_reaches_the_open_pages_of_that_user(chat: Stage, visit: Open) -> None:
    ada, grace = chat.demo("ada"), chat.demo("grace")
    room_id = chat.room(ada)
    first = await visit(grace)
    second = await visit(grace, elsewhere=(first,))
    await asyncio.to_thread(chat.ask, "POST", f"/api/rooms/{room_id}/members", token=grace)
    for page in (first, second):
        assert (await page.heard("entered", id=room_id))[0]["kind"] == "open"
    await asyncio.to_thread(chat.post, ada, room_id, "welcome")
    for page in (first, second):
        await page.heard("message", room=room_id)
    await asyncio.to_thread(chat.ask, "DELETE", f"/api/rooms/{room_id}/members/me", token=grace)
    for page in (first, second):
        await page.heard("left", room=room_id)
    await asyncio.to_thread(chat.post, ada, room_id, "is she gone?")
    for page in (first, second):  # what comes later on the same way has overtaken nothing
        await page.ask("sync")
        assert len(page.told("message", room=room_id)) == 1


async def test_a_direct_message_reaches_the_other_user_wherever_it_is(chat: Stage, visit: Open) -> None:
    one, other = chat.register(), chat.register()
    writer = await visit(one["token"])
    phone = await visit(other["token"], elsewhere=(writer,))
    desk = await visit(other["token"], elsewhere=(writer, phone))
    asked = await asyncio.to_thread(chat.ask, "POST", "/api/direct", {"user": other["user"]["id"]}, token=one["token"])
    room_id = asked.json()["id"]
    for page in (phone, desk):
        assert (await page.heard("entered", id=room_id))[0]["other"] == one["user"]
    said = await writer.say(room_id, "just you and me")
    for page in (phone, desk):
        assert await page.heard("message", room=room_id) == [said["ok"]]
    assert (await phone.ask("read", {"room": room_id, "id": 99})) == {"ok": 1}, "no further than there are messages"
    assert await desk.heard("read", room=room_id) == [{"room": room_id, "id": 1}]


async def test_typing_is_told_to_the_others_only(chat: Stage, visit: Open) -> None:
    tokens = [chat.demo(name) for name in ("ada", "grace")]
    room_id = chat.room(*tokens)
    ada = await visit(tokens[0])
    grace = await visit(tokens[1], elsewhere=(ada,))
    await ada.ask("typing", {"room": room_id})
    assert (await grace.heard("typing", room=room_id))[0]["user"]["name"] == "ada"
    assert ada.told("typing") == []


async def test_everybody_sees_who_is_online_and_where(chat: Stage, visit: Open) -> None:
    ada = await visit(chat.demo("ada"))
    made = chat.register()
    user = str(made["user"]["id"])
    seen = lambda: [change[user] for change in ada.told("online") if user in change]  # noqa: E731
    page = await visit(made["token"], elsewhere=(ada,))
    served_by = (await page.hello())["served_by"]["instance"]
    await ada.until(lambda: seen() and seen()[-1] == [served_by])
    state = (await ada.ask("sync"))["ok"]
    assert state["online"][user] == [served_by]
    assert sum(instance["users"] for instance in state["instances"] if instance["name"] == served_by) >= 1
    await page.close()
    await ada.until(lambda: seen()[-1] == [])
    known = {one["id"]: one for one in chat.ask("GET", "/api/users", token=made["token"]).json()["users"]}
    assert abs(known[made["user"]["id"]]["last_seen"] - time.time() * 1000) < 30_000


async def test_a_connection_lasts_as_long_as_its_token(chat: Stage, node: NodePeer) -> None:
    for bad in ("", "nonsense", token(1, ends_s=time.time() - 1)):
        page = Page(node, f"refused {bad[:3]}", bad)
        await node.do("connect", name=page.name, url=chat.url, options={"auth": {"token": bad}})
        refusal = (await node.wait(page.name, "connect_error"))[0]
        assert refusal[1] == {"code": "not_signed_in"}

    ends_s = time.time() + 2
    short, renewed = Page(node, "short", token(1, ends_s=ends_s)), Page(node, "renewed", token(1, ends_s=ends_s))
    await short.open(chat.url)
    await renewed.open(chat.url)
    others = token(2, ends_s=time.time() + 60)
    assert (await renewed.ask("renew", others))["error"]["code"] == "not_yours"
    assert "ok" in await renewed.ask("renew", token(1, ends_s=time.time() + 60))
    await node.wait("short", "disconnect")
    assert time.time() >= ends_s
    assert "ok" in await renewed.ask("sync")
    assert node.seen("renewed", "disconnect") == []


async def test_killed_instances_lose_and_double_nothing(chat: Stage, visit: Open) -> None:
    """A writer that sends again what was not acknowledged, a reader that asks for what it missed: as the page does."""
    tokens = [chat.demo(name) for name in ("ada", "grace")]
    room_id = chat.room(*tokens)
    ada = await visit(tokens[0])
    grace = await visit(tokens[1], elsewhere=(ada,))
    leaver = chat.register()
    user = str(leaver["user"]["id"])
    gone = await visit(leaver["token"], elsewhere=(grace,))
    while (await gone.hello())["served_by"] != (await ada.hello())["served_by"]:
        await gone.close()
        gone = await visit(leaver["token"], elsewhere=(grace,))
    await grace.until(lambda: any(one.get(user) for one in grace.told("online")))
    sent = 0

    async def write(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            sent += 1
            client_id = str(uuid.uuid4())
            async with asyncio.timeout(30):
                while not await _acknowledged(ada, room_id, f"line {sent}", client_id):
                    await ada.hello(len(ada.told("hello")) or 1)

    for round_number in range(SIGKILLS):
        await write(10)
        victim = (ada, grace)[round_number]
        ready = chat.ready_lines()
        hellos = victim.told("hello")
        writing = asyncio.create_task(write(20))
        chat.kill(hellos[-1]["served_by"]["pid"])
        if round_number == 0:
            await gone.close()  # and does not come back
        await victim.hello(len(hellos) + 1)
        await writing
        await asyncio.to_thread(wait_until, lambda: chat.ready_lines() > ready, "a new instance", FOREIGN_S)  # noqa: B023

    stored = chat.history(tokens[1], room_id, limit=200)["messages"]
    assert [message["id"] for message in stored] == list(range(1, sent + 1))
    assert [message["body"] for message in stored] == [f"line {number}" for number in range(1, sent + 1)]
    told = {message["id"]: message["body"] for message in grace.told("message", room=room_id)}
    assert told.items() <= {message["id"]: message["body"] for message in stored}.items()
    heads = (await grace.ask("sync"))["ok"]["heads"]
    assert heads[str(room_id)] == sent, "so a page knows what it missed"
    # Users of a dead instance are gone when its lease is over; whoever looks at that moment may have been killed, too.
    state = await grace.until_asked("sync", lambda answer: user not in answer["ok"]["online"], FOREIGN_S)
    assert str((await grace.hello())["me"]["id"]) in state["ok"]["online"]


async def _acknowledged(page: Page, room_id: int, body: str, client_id: str) -> bool:
    try:
        answer = await page.ask("send", {"room": room_id, "client_id": client_id, "body": body}, timeout_ms=1000)
    except RuntimeError:
        return False
    return "ok" in answer


# --- one of N migrates and seeds --------------------------------------------------------------------------------------

STEPS = ["0001_chat", "0001_crew", "0002_talk"]
_APPLIED = re.compile(r'"step": "(\w+)".*"event": "migration applied"|"event": "migration applied".*"step": "(\w+)"')


def applied(lines: list[str]) -> list[str]:
    """The steps of migrations and seeds that these logs tell of."""
    return [found[1] or found[2] for line in lines if (found := _APPLIED.search(line))]


def test_one_of_three_instances_migrates_and_seeds(chat: Stage) -> None:
    assert applied(chat.service.lines) == STEPS, "later starts, those after a kill too, found everything done"
    assert sum('"event": "schema ready"' in line for line in chat.service.lines) >= 3
    assert chat.rows("SELECT count(*) FROM users WHERE demo") == [(4,)]
    assert chat.rows("SELECT count(*) FROM messages JOIN rooms ON rooms.id = room_id WHERE rooms.name = 'Deploys'") == [
        (2,)
    ]


async def test_three_hosts_behind_a_balancer_start_at_once_and_one_migrates(
    tmp_path: Path, valkey_url: str, postgres_server: EmbeddedPostgres, node: NodePeer
) -> None:
    with database(postgres_server) as url, ExitStack() as stack:
        blocker = stack.enter_context(psycopg.connect(url))
        blocker.execute("CREATE TABLE messages (n int)")  # not committed: the migration waits for it
        hosts = []
        for number, framework in enumerate(("fastapi", "flask", "fastapi")):
            folder = tmp_path / f"host{number}"
            folder.mkdir()
            host = Stage(
                folder,
                valkey_url,
                url,
                framework=framework,
                instances=1,
                namespace=f"{tmp_path.name}:",
                env={"FLOTTA_INSTANCE": f"host-{number}"},
            )
            stack.callback(host.close)
            hosts.append(host)
        lines = lambda: [line for host in hosts for line in list(host.service.lines)]  # noqa: E731
        waiting = lambda: sum('"event": "migrations wait"' in line and "host-" in line for line in lines())  # noqa: E731
        await asyncio.to_thread(wait_until, lambda: waiting() >= 2, "two hosts say that they wait")
        assert applied(lines()) == []
        blocker.rollback()
        ports = [await asyncio.to_thread(lambda host=host: int(host.url.rpartition(":")[2])) for host in hosts]
        assert sorted(applied(lines())) == sorted(STEPS)
        assert hosts[0].rows("SELECT count(*) FROM users") == [(4,)]
        assert hosts[0].rows("SELECT count(*) FROM messages") == [(7,)]
        await _talk_through_nginx(tmp_path, ports, hosts[0], node)


async def _talk_through_nginx(folder: Path, ports: list[int], host: Stage, node: NodePeer) -> None:
    """By the example's own configuration, each request to the next host, whatever session it is of."""
    site, port = (HOME / "nginx.conf").read_text(), free_port()
    for sample, real in zip((8000, 8001, 8002, 8003), (port, *ports), strict=True):
        site = site.replace(f"127.0.0.1:{sample}", f"127.0.0.1:{real}")
    async with nginx(folder, site):
        pages = []
        for name, transports in (("ada", ["polling"]), ("grace", ["polling", "websocket"]), ("linus", ["websocket"])):
            pages.append(Page(node, name, host.demo(name)))
            await pages[-1].open(f"http://127.0.0.1:{port}", transports=transports)
        for number, page in enumerate(pages):
            said = (await page.say(1, f"line {number}"))["ok"]
            for reader in pages:
                assert said in await reader.heard("message", number + 1, room=1)
        assert node.seen("ada", "disconnect") == node.seen("grace", "disconnect") == []
