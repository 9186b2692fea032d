"""The ASGI lifespan of one application: startup, its state, shutdown.

Unlike uvicorn's own, a failure carries the application's exception, and an application without a lifespan is told apart
from one whose startup failed: the first raises before it has asked for the startup event, the second after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

from flotta.errors import LifespanFailed

__all__ = ["Lifespan"]

Scope = MutableMapping[str, Any]
ASGIApp = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

FAILED_WAIT_S: Final = 1.0
_ANSWERS: Final = frozenset(
    f"lifespan.{phase}.{end}" for phase in ("startup", "shutdown") for end in ("complete", "failed")
)


@final
class Lifespan:
    """Runs the lifespan of ``app`` in a task of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.state: dict[str, Any] = {}
        self.supported = True
        self._inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._asked = False
        self._up = False
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises `LifespanFailed` if the application refuses. Cancelling it cancels the application's startup."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._task.add_done_callback(_retrieve)
        self._inbox.put_nowait({"type": "lifespan.startup"})
        try:
            await self._answer("startup")
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        self._up = self.supported

    async def shutdown(self) -> None:
        """Raises `LifespanFailed` if the application fails to stop. Without a successful startup it does nothing."""
        if not self._up:
            return
        self._up = False
        self._inbox.put_nowait({"type": "lifespan.shutdown"})
        await self._answer("shutdown")

    async def _answer(self, phase: str) -> None:
        assert self._task is not None
        answer = asyncio.ensure_future(self._answers.get())
        try:
            await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not self._answers.empty():
                answer.cancel()
                await self._check(phase, self._answers.get_nowait())
            elif answer.done():
                await self._check(phase, answer.result())
            else:
                self._ended(phase, self._task)
        finally:
            answer.cancel()

    async def _check(self, phase: str, message: dict[str, Any]) -> None:
        if message["type"] != f"lifespan.{phase}.failed":
            return
        assert self._task is not None
        # Frameworks send the traceback as text and then raise the exception itself, which says it shorter.
        await asyncio.wait([self._task], timeout=FAILED_WAIT_S)
        error = self._task.exception() if self._task.done() and not self._task.cancelled() else None
        told = str(message.get("message") or "no reason was given").strip()
        raise LifespanFailed(phase, told if error is None else f"{type(error).__name__}: {error}") from error

    def _ended(self, phase: str, task: asyncio.Task[None]) -> None:
        """The application returned or raised without an answer."""
        error = None if task.cancelled() else task.exception()
        if not self._asked or (error is None and phase == "startup"):
            self.supported = False
            return
        if error is not None:
            raise LifespanFailed(phase, f"{type(error).__name__}: {error}") from error

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, str]:
        self._asked = True
        return await self._inbox.get()

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] not in _ANSWERS:
            # An application that answers every scope as if it were a request has no lifespan.
            self._asked = False
            raise RuntimeError(f"{message['type']!r} is no answer to a lifespan event")
        self._answers.put_nowait(message)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Its exception is told by `LifespanFailed`; asyncio need not complain that nobody looked."""
    if not task.cancelled():
        task.exception()
