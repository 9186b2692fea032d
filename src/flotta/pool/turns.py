"""What the callers of one turn of the loop ask for leaves as one script call.

Owns the order, the size of a batch and who gets which answer. Invariants: items leave in the order of the calls; a
batch holds at most ``items_max`` items and ``bytes_max`` bytes (one larger item travels alone); what goes wrong with a
batch is told to every caller of it; a caller who is cancelled changes nothing for the others, nor for what is sent.

Why: most of what a script costs the server, and nearly all of what it costs the client, is paid per call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, final

from flotta.errors import StateError

__all__ = ["Turns"]

T = TypeVar("T")
R = TypeVar("R")


@final
class Turns(Generic[T, R]):
    """``send(items)`` gives one answer for each item, in their order. ``name`` is for people. It belongs to the loop in
    which it was made, or first used."""

    __slots__ = ("_answers", "_bytes", "_items", "_items_max", "_loop", "_name", "_send", "_sending", "bytes_max")

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        name: str,
        items_max: int = 128,
        bytes_max: int = 256 * 1024,
    ) -> None:
        self._send = send
        self._name = name
        self._items_max = items_max
        self.bytes_max = bytes_max
        self._items: list[T] = []
        self._answers: list[asyncio.Future[R]] = []
        self._bytes = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    def add(self, item: T, size_bytes: int = 0) -> asyncio.Future[R]:
        """The answer to ``item``, which leaves at the end of this turn. Cancelling the answer does not take it back.

        Raises ``StateError`` in another event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.check_loop(loop)
        if self._items and self._bytes + size_bytes > self.bytes_max:
            self.flush()
        if not self._items:
            loop.call_soon(self.flush)
        answer: asyncio.Future[R] = loop.create_future()
        self._items.append(item)
        self._answers.append(answer)
        self._bytes += size_bytes
        if len(self._items) >= self._items_max:
            self.flush()
        return answer

    def check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises ``StateError`` if ``loop`` is another loop than that of the first call."""
        if self._loop is None:
            self._loop = loop
        if loop is not self._loop:
            cure = "from other threads use asyncio.run_coroutine_threadsafe, or fleet.sync"
            raise StateError(self._name, f"{self._name}: called in another event loop than its own; {cure}")

    def flush(self) -> None:
        """Send what is collected, now."""
        if not self._items:
            return
        items, self._items = self._items, []
        answers, self._answers = self._answers, []
        self._bytes = 0
        task = asyncio.get_running_loop().create_task(self._exchange(items, answers), name=self._name)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def settle(self) -> None:
        """Return when everything added so far has its answer. Never raises for them; cancelling is harmless."""
        self.flush()
        while self._sending:
            await asyncio.wait(set(self._sending))

    def cancel(self) -> None:
        """Give up what is on its way: its callers are cancelled."""
        for task in tuple(self._sending):
            task.cancel()

    async def _exchange(self, items: list[T], answers: list[asyncio.Future[R]]) -> None:
        try:
            results = await self._send(items)
        except asyncio.CancelledError:
            for answer in answers:
                answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to every caller
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
                    answer.exception()  # a caller who does not ask must not make the loop complain
            return
        assert len(results) == len(answers)
        for answer, result in zip(answers, results, strict=True):
            if not answer.done():
                answer.set_result(result)
