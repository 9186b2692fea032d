"""The ASGI lifespan protocol: what each kind of application says, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flotta.errors import LifespanFailed
from flotta.server.lifespan import Lifespan


async def test_state_and_order() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["x"] = 1
        for phase in ("startup", "shutdown"):
            seen.append((await receive())["type"])
            await send({"type": f"lifespan.{phase}.complete"})

    lifespan = Lifespan(app)
    await lifespan.startup()
    assert (lifespan.state, lifespan.supported, seen) == ({"x": 1}, True, ["lifespan.startup"])
    await lifespan.shutdown()
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


async def _asserts(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def _answers_everything(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def _returns(scope: Any, receive: Any, send: Any) -> None:
    return


@pytest.mark.parametrize("app", [_asserts, _answers_everything, _returns])
async def test_application_without_a_lifespan_is_served(app: Any) -> None:
    lifespan = Lifespan(app)
    await lifespan.startup()
    assert not lifespan.supported
    await lifespan.shutdown()


async def test_refusal_and_crash_carry_their_reason() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no licence"})

    async def crashes(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise LookupError("no database")

    with pytest.raises(LifespanFailed, match="no licence"):
        await Lifespan(refuses).startup()
    with pytest.raises(LifespanFailed, match="LookupError: no database") as caught:
        await Lifespan(crashes).startup()
    assert isinstance(caught.value.__cause__, LookupError)


async def test_failing_shutdown_is_told_and_a_finished_one_is_not() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise OSError("disk")

    async def leaves(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    failing, leaving = Lifespan(fails), Lifespan(leaves)
    await failing.startup()
    with pytest.raises(LifespanFailed, match="OSError: disk"):
        await failing.shutdown()
    await leaving.startup()
    await leaving.shutdown()


async def test_cancelled_startup_ends_the_application() -> None:
    ended = asyncio.Event()
    inside = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
            inside.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    startup = asyncio.create_task(Lifespan(app).startup())
    await inside.wait()
    startup.cancel()
    with pytest.raises(asyncio.CancelledError):
        await startup
    assert ended.is_set()
