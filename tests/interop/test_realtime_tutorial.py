"""The tutorial on realtime, followed as the page says: three instances, real clients, one instance killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import node_modules
from supervisor_service import Service, wait_until

__all__ = ["node_modules"]

pytestmark = pytest.mark.node

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "chat.md").read_text()
FILES = {name: text for _, name, text in re.findall(r"```(python|js)\n(?:#|//) (\S+\.\w+)\n(.*?)```", PAGE, re.DOTALL)}


class Client:
    """``node client.mjs``, its lines in ``heard``."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        self.heard: list[str] = []
        self.process = subprocess.Popen(
            ["node", "client.mjs", name, "harbour", url], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, name=f"read {name}")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.append(line.decode().rstrip())

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, line: str) -> None:
        wait_until(lambda: line in self.heard, f"{line!r} in {self.heard}")

    def pid(self, name: str) -> int:
        """The instance that serves it."""
        pattern = re.compile(rf"{name}: in harbour, served by (\d+)")
        found: list[re.Match[str]] = wait_until(lambda: [m for m in map(pattern.match, self.heard) if m], "in the room")
        return int(found[0][1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def chatting(folder: Path, url: str, *names: str) -> Iterator[list[Client]]:
    clients: list[Client] = []
    try:
        clients += [Client(folder, name, url) for name in names]
        yield clients
    finally:
        for client in clients:
            client.close()


def test_the_tutorial_goes_as_it_says(tmp_path: Path, node_modules: Path, own_valkey: EmbeddedRedis) -> None:
    assert set(FILES) == {"chat.py", "client.mjs", "announce.py"}
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "node_modules").symlink_to(node_modules / "node_modules")
    environ = {"REDIS_URL": own_valkey.url}
    with closing(Service(tmp_path, "run", "chat:app", "-n", "3", "--port", "0", env=environ)) as fleet:
        url = fleet.url()
        with chatting(tmp_path, url, "ada", "bob") as (ada, bob):
            _talk(fleet, url, ada, bob)
            done = subprocess.run(
                [sys.executable, "announce.py"], cwd=tmp_path, env={**os.environ, **environ}, check=False
            )
            assert done.returncode == 0
            for client in (ada, bob):
                client.wait(f"{'ada' if client is ada else 'bob'}: announced: the harbour closes at ten")
            ada.wait("ada: announced: your boat is ready")
            assert not any("your boat" in line for line in bob.heard)
            _kill_the_instance_of_ada(ada, bob)
        fleet.signal(signal.SIGTERM)
        assert fleet.wait() == 0


def _talk(fleet: Service, url: str, ada: Client, bob: Client) -> None:
    assert ada.pid("ada") in fleet.family()
    bob.pid("bob")
    bob.say("hello")
    ada.wait("ada: bob says hello")
    bob.wait("bob: bob says hello")
    assert httpx.get(f"{url}/online/ada").json() == {"sockets": 1}
    assert httpx.get(f"{url}/online/nobody").json() == {"sockets": 0}
    httpx.post(f"{url}/announce/closing-soon")
    for name, client in (("ada", ada), ("bob", bob)):
        client.wait(f"{name}: announced: closing-soon")


def _kill_the_instance_of_ada(ada: Client, bob: Client) -> None:
    together = ada.pid("ada") == bob.pid("bob")
    os.kill(ada.pid("ada"), signal.SIGKILL)
    if together:
        bob.wait("bob: back, nothing missed")
    bob.say("did you see that")
    ada.wait("ada: back, nothing missed")
    ada.wait("ada: bob says did you see that")
    assert ada.heard.count("ada: bob says did you see that") == 1
