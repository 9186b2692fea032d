"""Taking over a large snapshot leaves the loop free."""

from __future__ import annotations

import asyncio

from flotta.rmap.follower import CHUNK_KEYS, _snapshot_of
from flotta.rmap.wire import EventKind


async def test_other_tasks_run_between_the_chunks_of_a_large_snapshot() -> None:
    fields = {b"key-%d" % number: b"v" for number in range(CHUNK_KEYS * 20)} | {b"=rev": b"7", b"=kind": b"del"}
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    snapshot = await _snapshot_of(fields)
    running.cancel()
    assert turns >= 20
    assert (len(snapshot.content), snapshot.revision, snapshot.kind) == (CHUNK_KEYS * 20, 7, EventKind.DELETE)
    assert not any(key.startswith("=") for key in snapshot.content)
