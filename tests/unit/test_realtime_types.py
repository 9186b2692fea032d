"""What a type checker knows of a realtime program: decorated functions keep their types, wrong ones are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import re
from collections.abc import Awaitable, Callable
from typing import Any, assert_type

from flotta.realtime import ASGIApp, Namespace, Reason, Server, ServerStats

sio = Server(namespaces=("/news",))


@sio.event
async def chat(sid: str, text: str) -> int:
    await sio.emit("chat", text, room="everybody", skip_sid=sid)
    await sio.emit("chat", text, rooms="everybody")  # error
    return len(text)


@sio.event(namespace="/admin")
def quick(sid: str) -> None: ...


@sio.on("my event", namespace=re.compile("/room-.*"))
async def my_event(namespace: str, sid: str, count: int) -> str:
    return namespace * count


def mine(name: str, auth: Any, environ: dict[str, Any]) -> bool:
    return bool(name)


async def theirs(name: str, auth: Any, environ: dict[str, Any]) -> bool:
    return bool(name)


def wrong(name: str) -> bool:
    return bool(name)


def direct(sid: str, reason: str) -> None:
    assert Reason(reason)


sio.on("e", direct, namespace=mine)
sio.on("e", direct, namespace=theirs)
sio.on("e", direct, namespace="*")
sio.on("e", direct, namespace=wrong)  # error
sio.on("e", direct, namespace=7)  # error
sio.on("e", "no function")  # error


@sio.use
async def guard(sid: str, environ: dict[str, Any], auth: dict[str, str] | None) -> None: ...


@sio.use_event(namespace="/admin")
async def timed(sid: str, event: str, args: list[Any], go_on: Callable[[], Awaitable[Any]]) -> Any:
    return await go_on()


class Admin(Namespace):
    async def on_connect(self, sid: str, environ: dict[str, Any]) -> None:
        await self.enter_room(sid, "admins")
        await self.enter_room(sid, 1)  # error
        async with self.session(sid) as session:
            assert_type(session, dict[str, Any])
        assert_type(self.rooms(sid), list[str])
        assert_type(self.server, Server)


sio.register_namespace(Admin("/admin"))
sio.register_namespace(Admin)  # error


async def main() -> None:
    assert_type(await chat("sid", "text"), int)
    await chat("sid", 5)  # error
    assert_type(quick("sid"), None)
    assert_type(await my_event("/room-1", "sid", 2), str)
    assert_type(direct("sid", "why"), None)
    await guard("sid", {}, None)
    await guard("sid", {}, 1)  # error
    assert_type(sio.transport("sid"), str | None)
    assert_type(await sio.start_background_task(chat, "sid", "text"), int)
    assert_type(sio.stats, ServerStats)
    app = ASGIApp(sio)
    await app({"type": "http"}, 1, 2)  # error
"""


def test_a_typed_program_is_checked(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    wrong = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")]
    found = [int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line]
    assert sorted(set(found)) == wrong, checked.stdout + checked.stderr
