"""Harbor on a real stage, for its tests: `flotta run` with instances of its own, a database of its own, HTTP and
Socket.IO clients."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import websockets

from flotta.postgres import EmbeddedPostgres
from flotta.redis import Redis
from flotta.streaming import Stream
from supervisor_service import Service, wait_until

HOME = Path(__file__).parents[1] / "examples" / "harbor"
SOURCE = HOME / "src"

SECRET = "a secret of the tests, as long as one must be"
FLEET_OWNER = "fleet@harbor.example"


class Stage:
    """Harbor with ``instances`` processes."""

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        database_url: str,
        *,
        instances: int,
        env: Mapping[str, str],
        feed: float | None,
    ) -> None:
        self.database_url = database_url
        self.token = secrets.token_urlsafe(32)
        self.namespace = f"harbor-{secrets.token_hex(4)}:"
        self.environ = {
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "FLOTTA_NAMESPACE": self.namespace,
            "HARBOR_SECRET": SECRET,
            "HARBOR_DEMO": "1",
            "HARBOR_DEMO_TOKEN": self.token,
            "HARBOR_AGE_MAX_DAYS": "200",
            "HARBOR_ACK_GRACE_S": "2",
            "PYTHONPATH": str(SOURCE),
            **env,
        }
        arguments = ["run", "harbor.app:app", "--app-dir", str(SOURCE), "--name", "harbor", "--port", "0"]
        arguments += ["-n", str(instances), "--drain", "3"]
        if feed is not None:
            arguments += ["--with", f"feed={sys.executable} -m harbor.replay --speed {feed:g}"]
            arguments += ["--ready-path", f"/api/flowing?instances={instances}"]
        self.service = Service(folder, *arguments, env=self.environ)
        self.url = self.service.url()
        self.http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)

    def close(self) -> None:
        self.http.close()
        self.service.close()

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> httpx.Response:
        """One request, over a connection of its own: it may reach any instance."""
        headers = {"connection": "close"} | ({"authorization": f"Bearer {token}"} if token else {})
        return self.http.request(method, path, json=body, headers=headers)

    def account(self, name: str = "Somebody") -> tuple[str, str]:
        """A new account: its email and a session token."""
        email = f"{secrets.token_hex(6)}@example.com"
        answer = self.ask("POST", "/api/accounts", {"email": email, "name": name, "password": "correct horse battery"})
        assert answer.status_code == 201, answer.text
        return email, answer.json()["token"]

    def device(self, session: str, name: str = "Test vessel") -> tuple[str, str]:
        """A new device: its id and its token."""
        device = f"test:{secrets.token_hex(6)}"
        answer = self.ask("POST", "/api/devices", {"id": device, "name": name, "kind": "tug"}, token=session)
        assert answer.status_code == 201, answer.text
        return device, answer.json()["token"]

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/api/status").json()

    def instances(self) -> dict[str, int]:
        """Name and pid of those that are alive."""
        return {instance["name"]: instance["pid"] for instance in self.status()["instances"]}

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    # --- the database ------------------------------------------------------------------------------------------------

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute(query, params or None).fetchall()  # type: ignore[arg-type]

    def stored(self, device: str) -> int:
        """Rows of one device."""
        return int(self.rows("SELECT count(*) FROM positions WHERE device_id = %s", device)[0][0])

    def wait_stored(self, device: str, count: int, timeout_s: float = 20.0) -> None:
        wait_until(lambda: self.stored(device) >= count, f"{count} positions of {device} are stored", timeout_s)

    def dead_letters(self) -> int:
        """Positions that the persister has given up."""

        async def ask() -> int:
            async with Redis.from_url(self.environ["REDIS_URL"], namespace=self.namespace) as redis:
                stream: Stream[bytes] = await Stream.open("positions", redis)
                return len(await stream.dead_letters("persister"))

        return asyncio.run(ask())

    # --- Socket.IO ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def page(self, session: str, *, back: PageSocket | None = None) -> AsyncIterator[PageSocket]:
        """A connection as the page makes it. ``back``: its earlier one, whose session it wants again."""
        url = self.url.replace("http", "ws", 1) + "/socket.io/?EIO=4&transport=websocket"
        async with websockets.connect(url, proxy=None) as connection:
            page = PageSocket(connection)
            reading = asyncio.create_task(page.read(), name="read page socket")
            known = {} if back is None else {"pid": back.pid, "offset": back.offset}
            await connection.send("40" + json.dumps({"token": session, **known}))
            try:
                yield page
            finally:
                reading.cancel()


class PageSocket:
    """The least of a Socket.IO client: it collects events and answers pings."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.events: list[tuple[str, Any]] = []
        self.pid: str | None = None
        """The private id of its session."""
        self.offset: str | None = None
        """The last event of the stream that it got."""
        self.refusal: str | None = None
        self.closed = asyncio.Event()
        self.answer: Any = None
        self._news = asyncio.Event()

    async def read(self) -> None:
        try:
            async for message in self._connection:
                if message == "2":
                    await self._connection.send("3")
                elif message.startswith("42"):
                    name, *data = json.loads(message[2:])
                    self.events.append((name, data[0] if data else None))
                    self.offset = data[-1] if data and isinstance(data[-1], str) else self.offset
                elif message.startswith("40"):
                    self.pid = json.loads(message[2:])["pid"]
                elif message.startswith("431"):
                    self.answer = json.loads(message[3:])
                elif message.startswith("44"):
                    self.refusal = json.loads(message[2:])["message"]
                elif message.startswith("41"):
                    self.closed.set()
                self._news.set()
        except websockets.ConnectionClosed:
            pass
        self.closed.set()
        self._news.set()

    async def ask(self, event: str, *data: Any) -> Any:
        """What the service answers; one question at a time."""
        self.answer = None
        await self._connection.send("421" + json.dumps([event, *data]))
        return await self.wait(lambda page: page.answer, f"the answer to {event}")

    def fixes(self, device: str) -> list[Any]:
        """The fixes of a device that have come so far."""
        return [fix for name, batch in self.events if name == "positions" for fix in batch if fix[0] == device]

    def described(self) -> list[Any]:
        """What was said about devices so far."""
        return [device for name, devices in self.events if name == "devices" for device in devices]

    async def wait(self, fact: Any, what: str, timeout_s: float = 10.0) -> Any:
        """The first true value of ``fact(self)``, asked after every message."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (value := fact(self)):
                    self._news.clear()
                    await self._news.wait()
                return value
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}; came: {self.events}") from None

    async def hello(self) -> dict[str, Any]:
        return await self.wait(
            lambda page: next((data for name, data in page.events if name == "hello"), None), "hello"
        )


@contextmanager
def stage(
    folder: Path,
    redis_url: str,
    postgres: EmbeddedPostgres,
    *,
    instances: int = 3,
    env: Mapping[str, str] | None = None,
    feed: float | None = None,
) -> Iterator[Stage]:
    """Harbor on a database of its own. ``feed``: play the recorded hour at this speed."""
    name = f"harbor_{secrets.token_hex(4)}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    running = Stage(folder, redis_url, postgres.url_for(name), instances=instances, env=env or {}, feed=feed)
    try:
        yield running
    finally:
        running.close()
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def position(lat: float = 40.65, lon: float = -74.05, *, ago_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """A report of now, or of ``ago_s`` seconds ago."""
    return {"time": time.time() - ago_s, "lat": lat, "lon": lon, **more}
