"""Celery tasks that send to the clients of a live server: a real worker with forked processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from websockets.asyncio.client import connect as ws_connect

from flotta.realtime import Server
from flotta.redis.embedded import EmbeddedRedis
from realtime_fixtures import serving

TESTS = Path(__file__).parents[1]
JOBS, STEPS, PROCESSES = 24, 5, 2
WAIT_S = 30.0


@contextmanager
def _worker(url: str, prefix: str) -> Iterator[int]:
    """A Celery worker; gives the id of its main process."""
    options = [
        "--pool=prefork",
        f"--concurrency={PROCESSES}",
        "--loglevel=ERROR",
        "--without-gossip",
        "--without-mingle",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", *options],
        cwd=TESTS,
        env={**os.environ, "REDIS_URL": url, "CHANNEL_PREFIX": prefix, "C_FORCE_ROOT": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _order(url: str, queue: str) -> None:
    with Celery("orders", broker=url) as app:
        for number in range(JOBS):
            app.send_task("celery_tasks.report", (number, STEPS), queue=queue, ignore_result=True)


async def test_tasks_of_forked_workers_reach_the_clients_in_order_and_once(
    own_valkey: EmbeddedRedis, unique: str
) -> None:
    sio = Server(own_valkey.url, channel_prefix=unique)

    @sio.event
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await sio.enter_room(sid, "watching")

    await sio.start()
    address = "ws://127.0.0.1:{}/socket.io/?EIO=4&transport=websocket"
    async with serving(sio, native=True) as port, ws_connect(address.format(port)) as client:
        await client.recv()
        await client.send("40")
        await client.recv()

        async def event() -> list[Any]:
            async with asyncio.timeout(WAIT_S):
                return list(json.loads(str(await client.recv())[2:]))

        with _worker(own_valkey.url, unique) as main_pid:
            assert await event() == ["imported", main_pid]
            await asyncio.to_thread(_order, own_valkey.url, unique)
            told = [(await event())[1] for _ in range(JOBS * STEPS)]
        steps: dict[int, list[int]] = {}
        for one in told:
            steps.setdefault(one["job"], []).append(one["step"])
        assert steps == {number: list(range(STEPS)) for number in range(JOBS)}
        pids = {one["pid"] for one in told}
        assert pids.isdisjoint({main_pid})
        assert 1 <= len(pids) <= PROCESSES
        await sio.emit("last")
        assert await event() == ["last"]  # nothing came twice
