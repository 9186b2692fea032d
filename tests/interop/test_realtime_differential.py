"""The same packets, played against the official Node server and against Flotta's with the same application: what comes
back is the same, but for the differences that the page on moving from Node tells of.

Statuses, kinds and order of packets, ends and what handlers see are compared (`differential_wire`). The scripts are in
`differential_cases`; a few come from `differential_random`, and for whoever has time many more:
``DIFFERENTIAL_SEEDS="4 1000" pytest -o timeout=0 tests/interop/test_realtime_differential.py``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from differential_app import flotta_app
from differential_cases import AGREED, DIFFERENT
from differential_random import random_case
from differential_wire import Case, Server, Transcript, difference

from realtime_fixtures import native, node_modules, node_script, serving

__all__ = ["native", "node_modules"]

pytestmark = pytest.mark.node

ORIGIN: Final = "https://app.example.com"
SEEDS: Final = range(*map(int, os.environ.get("DIFFERENTIAL_SEEDS", "0 4").split()))
WORDS_MAX: Final = 400


@asynccontextmanager
async def _servers(*, native: bool) -> AsyncIterator[tuple[Server, Server]]:
    """Node's and ours."""
    options = {"cors": {"origin": [ORIGIN], "credentials": True}}
    sio, control = flotta_app(cors_origins=(ORIGIN,))
    async with (
        node_script("differential.js", json.dumps(options)) as process,
        serving(sio, native=native, other=control) as port,
    ):
        assert process.stdout is not None
        servers = Server(int(await process.stdout.readline())), Server(port)
        yield servers
        for server in servers:
            server.close()


async def _play(cases: Iterable[Case], *, native: bool) -> list[tuple[Case, Transcript, Transcript]]:
    """What Node made of each, and what Flotta made of it."""
    async with _servers(native=native) as (node, flotta):
        return [(case, *await asyncio.gather(node.play(case), flotta.play(case))) for case in cases]


def _difference(case: Case, node: Transcript, flotta: Transcript) -> str:
    """The first step of which the two made something else, for people. Empty: they agree."""
    steps = [str(step) for step in case.steps] + ["the end"]
    for step, theirs, ours in zip(steps, node, flotta, strict=True):
        if theirs != ours:
            lines = (case.name, f"after {step}", f"Node:   {theirs}", f"Flotta: {ours}")
            return "\n  ".join(line[:WORDS_MAX] for line in lines)
    return ""


@pytest.mark.usefixtures("node_modules")
async def test_same_packets_bring_the_same_as_from_nodes_server(native: bool) -> None:
    # What is wrong with a frame, only the native transport knows: ASGI's servers say that the connection is gone.
    cases = AGREED if native else [case for case in AGREED[::4] if not case.name.startswith("frame: ")]
    differences = [_difference(*played) for played in await _play([*cases, *map(random_case, SEEDS)], native=native)]
    assert not any(differences), "\n".join(filter(None, differences))


@pytest.mark.usefixtures("node_modules")
async def test_differences_from_nodes_server_are_those_that_are_told_of() -> None:
    played = await _play([told.case for told in DIFFERENT], native=True)
    found = [
        (why, case.name, *difference(node, flotta))
        for (why, case, *_), (_, node, flotta) in zip(DIFFERENT, played, strict=True)
    ]
    assert found == [(why, case.name, *told) for why, case, *told in DIFFERENT]
    page = (Path(__file__).parents[2] / "docs" / "howto" / "moving-from-node.md").read_text()
    for why in {told.why for told in DIFFERENT}:
        assert f"**{why[0].upper()}{why[1:]}.**" in page, f"the page on moving from Node does not tell of: {why}"
