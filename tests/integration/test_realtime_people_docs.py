"""The programs of the pages about users and limits run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from doc_programs import run_program
from flotta.redis import Redis
from flotta.redis.embedded import EmbeddedRedis
from realtime_people import come, fleet

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)


async def test_program_with_users_says_who_is_online_and_signs_out(own_valkey: EmbeddedRedis) -> None:
    users, _ = programs("realtime-presence.md")
    assert (await run_program(users, own_valkey.url)).endswith("False []\n")  # behind a warning about open files


async def test_program_that_watches_prints_what_happens(own_valkey: EmbeddedRedis) -> None:
    _, watching = programs("realtime-presence.md")
    environ = {**os.environ, "REDIS_URL": own_valkey.url, "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", watching, env=environ, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20), await Redis.from_url(own_valkey.url).connect() as redis:
            while (line := await process.stdout.readline()) != b"0 users are online\n":
                assert line
            async with fleet(redis, "socket.io", 1, presence=True) as ((_, port),):
                visitor = await come(port, user="ada")
                assert await process.stdout.readline() == b"join ada 1\n"
                await visitor.socket.close()
                assert await process.stdout.readline() == b"leave ada 0\n"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("number", range(2))
async def test_programs_about_metrics_run(number: int, valkey_url: str) -> None:
    printed = await run_program(programs("realtime-limits.md")[number], valkey_url)
    assert ("websocket_connections 0.0" in printed) is (number == 0)


async def test_user_of_the_page_may_do_what_it_says(own_valkey: EmbeddedRedis) -> None:
    [rules] = re.findall(r"```text\n(chat on .*?)```", (PAGES / "realtime-presence.md").read_text(), re.DOTALL)
    async with await Redis.from_url(own_valkey.url).connect() as admin:
        await admin.execute_command("ACL", "SETUSER", *rules.split())
        url = own_valkey.url.replace("redis://", "redis://chat:PASSWORD@")
        async with (
            await Redis.from_url(url).connect() as narrow,
            fleet(narrow, "socket.io", 2, presence=True, presence_ttl_s=1.0, connections_per_user_max=2) as servers,
        ):
            (one, port), (two, _) = servers
            async with two.presence.changes() as changes:
                visitor = await come(port, user="ada")
                await one.presence.set_status(visitor.sid, "away")
                kinds = []
                async for change in changes:
                    kinds.append(change.kind)
                    if change.kind == "status":
                        break
            assert kinds == ["join", "status"]
            assert await two.presence.users() == ["ada"]
            await two.revoke("ada")
            assert (await visitor.ended())[1] == 1008
        refused = [entry for entry in await admin.execute_command("ACL", "LOG", 100) if b"chat" in str(entry).encode()]
        assert refused == []


def test_every_option_of_the_pages_exists_and_every_limit_stands_there() -> None:
    from dataclasses import fields

    from flotta.realtime import ServerOptions

    text = (PAGES / "realtime-limits.md").read_text() + (PAGES / "realtime-presence.md").read_text()
    names = {field.name for field in fields(ServerOptions)}
    mine = {name for name in names if name.endswith("_max") and name not in {"namespaces_max", "publish_in_flight_max"}}
    mine |= {"idle_s", "presence", "presence_ttl_s", "drain_s", "drain_clients_per_s", "drain_event", "cors_origins"}
    missing = {name for name in mine if f"`{name}" not in text}
    assert missing == set()
