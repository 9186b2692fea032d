"""Quay, the chat example, on a real stage for its tests: `flotta run` with a database of its own, REST and the official
Socket.IO client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import secrets
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from flotta.postgres import EmbeddedPostgres
from realtime_fixtures import WAIT_S, NodePeer
from supervisor_service import Service

HOME = Path(__file__).parents[1] / "examples" / "chat"
SOURCE = HOME / "src"
CLIENT = HOME / "web/node_modules/socket.io-client/dist/socket.io.esm.min.js"
SECRET = "a secret of the tests, as long as one must be"
DEMO = ("ada", "grace", "linus", "mary")

_addresses = itertools.count(1)


class Stage:
    """Quay on ``framework`` with ``instances`` processes."""

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        database_url: str,
        *,
        framework: str,
        instances: int,
        namespace: str,
        env: Mapping[str, str],
    ) -> None:
        self.framework = framework
        self.database_url = database_url
        self.environ = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "FLOTTA_NAMESPACE": namespace,
            "QUAY_SECRET": SECRET,
            "QUAY_DEMO": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
            **env,
        }
        arguments = ["run", f"quay.on_{framework}:app", "--app-dir", str(SOURCE), "--name", "quay", "--port", "0"]
        self.service = Service(folder, *arguments, "-n", str(instances), "--drain", "3", env=self.environ)
        self._http: httpx.Client | None = None

    @property
    def url(self) -> str:
        return self.service.url()

    @property
    def http(self) -> httpx.Client:
        if self._http is None:
            self._http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        return self._http

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
        self.service.close()

    # --- REST --------------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, **more: Any) -> httpx.Response:
        """One request, over a connection of its own: it may reach any instance."""
        headers = {"connection": "close"} | ({"authorization": f"Bearer {token}"} if token else {})
        headers |= more.pop("headers", {})
        if body is not None:
            more["json"] = body
        return self.http.request(method, path, headers=headers, **more)

    def demo(self, name: str) -> str:
        """A token of a seeded user."""
        return str(self.ask("POST", "/api/session/demo", {"name": name}).json()["token"])

    def register(self, **more: Any) -> dict[str, Any]:
        """A new user, from an address of its own: token and user."""
        body = {"name": f"u{secrets.token_hex(5)}", "password": "correct horse battery"} | more
        answer = self.ask("POST", "/api/users", body, headers=other_address())
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def room(self, token: str, *others: str) -> int:
        """A new room of whose token this is, which ``others`` have joined."""
        answer = self.ask("POST", "/api/rooms", {"name": f"Room {secrets.token_hex(5)}"}, token=token)
        assert answer.status_code == 201, answer.text
        room_id = int(answer.json()["id"])
        for other in others:
            assert self.ask("POST", f"/api/rooms/{room_id}/members", token=other).status_code == 200
        return room_id

    def post(self, token: str, room_id: int, body: str, client_id: str | None = None) -> httpx.Response:
        said = {"client_id": client_id or str(uuid.uuid4()), "body": body}
        return self.ask("POST", f"/api/rooms/{room_id}/messages", said, token=token)

    def history(self, token: str, room_id: int, **params: Any) -> dict[str, Any]:
        answer = self.ask("GET", f"/api/rooms/{room_id}/messages", token=token, params=params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def rooms(self, token: str) -> dict[int, dict[str, Any]]:
        return {room["id"]: room for room in self.ask("GET", "/api/rooms", token=token).json()["rooms"]}

    # --- processes and the database ----------------------------------------------------------------------------------

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def ready_lines(self) -> int:
        """How often an instance has got ready."""
        return sum(" ready in " in line for line in list(self.service.lines))

    def pids(self) -> dict[str, int]:
        """The process of each instance, as the supervisor has told."""
        ready = (re.search(r"(\S+) ready in .* \(pid (\d+)\)", line) for line in list(self.service.lines))
        return {found[1]: int(found[2]) for found in ready if found}

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(query, params or None).fetchall()  # type: ignore[arg-type]


class Page:
    """A signed-in page: one official client, seen by what it was told."""

    def __init__(self, node: NodePeer, name: str, token: str) -> None:
        self.node = node
        self.name = name
        self.token = token

    async def open(self, url: str, **options: Any) -> dict[str, Any]:
        """Connect; what the service says first."""
        await self.node.do("connect", name=self.name, url=url, options={"auth": {"token": self.token}, **options})
        return await self.hello()

    async def hello(self, count: int = 1) -> dict[str, Any]:
        return dict((await self.node.wait_event(self.name, "hello", count))[count - 1][0])

    async def close(self) -> None:
        await self.node.do("close", name=self.name)

    async def ask(self, event: str, *data: Any, timeout_ms: int = 5000) -> dict[str, Any]:
        """The acknowledgement: ``{"ok": ...}`` or ``{"error": ...}``."""
        return dict((await self.node.do("ask", name=self.name, args=[event, *data], timeout=timeout_ms))[0])

    async def say(self, room: int, body: str, client_id: str | None = None) -> dict[str, Any]:
        return await self.ask("send", {"room": room, "client_id": client_id or str(uuid.uuid4()), "body": body})

    def told(self, event: str, **fields: Any) -> list[Any]:
        """What came so far of ``event`` with these fields."""
        found = [args[0] for args in self.node.events(self.name, event) if args]
        return [data for data in found if all(data.get(name) == value for name, value in fields.items())]

    async def heard(self, event: str, count: int = 1, **fields: Any) -> list[Any]:
        """Wait until it came ``count`` times."""
        return await self.until(lambda: len(self.told(event, **fields)) >= count and self.told(event, **fields))

    async def until_asked(self, event: str, fact: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any]:
        """Ask until the answer is so. For facts that nothing announces."""
        async with asyncio.timeout(timeout_s):
            while not fact(answer := await self.ask(event)):
                await asyncio.sleep(0.1)
        return answer

    async def until(self, fact: Any, timeout_s: float = WAIT_S) -> Any:
        """Wait until ``fact()`` is true, asked whenever something happens; its value."""
        found: Any = None

        def look() -> bool:
            nonlocal found
            found = fact()
            return bool(found)

        async with asyncio.timeout(timeout_s), self.node._changed:
            await self.node._changed.wait_for(look)
        return found


@contextmanager
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh database."""
    name = f"chat_{secrets.token_hex(4)}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    try:
        yield postgres.url_for(name)
    finally:
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@contextmanager
def chat_stage(
    folder: Path,
    redis_url: str,
    postgres: EmbeddedPostgres,
    framework: str,
    *,
    instances: int = 3,
    env: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """Quay on a database of its own, ready."""
    with database(postgres) as database_url:
        namespace = f"chat-{secrets.token_hex(4)}:"
        running = Stage(
            folder,
            redis_url,
            database_url,
            framework=framework,
            instances=instances,
            namespace=namespace,
            env=env or {},
        )
        try:
            running.service.url()
            yield running
        finally:
            running.close()


def other_address() -> dict[str, str]:
    """The header with which a proxy tells a client's address: attempts are counted for each."""
    number = next(_addresses)
    return {"x-forwarded-for": f"10.{os.getpid() % 200}.{number // 250}.{number % 250}"}


def token(user_id: int, *, ends_s: float, signed_in_s: float | None = None, secret: str = SECRET) -> str:
    """A token as the service signs them, made here from the description in its README."""
    claims = json.dumps([user_id, signed_in_s or time.time(), ends_s]).encode()
    said = f"quay1.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}"
    signature = hmac.digest(secret.encode(), said.encode(), hashlib.sha256)
    return f"{said}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
