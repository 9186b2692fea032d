"""The tasks in which handlers of the user run: who owns them can wait until they have ended, and end them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["ANY_FAILURE", "Running", "let_cancelling_through"]

# A handler may raise anything; it is logged with its traceback. CancelledError too: it may have awaited a task that
# somebody else cancelled, and that must not end the work of its client.
ANY_FAILURE: Final = (Exception, asyncio.CancelledError)


def let_cancelling_through(error: BaseException) -> None:
    """Raise it again if it is this task that is being cancelled."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


class Running:
    """The tasks of handlers that have begun; a subclass adds to ``_tasks``. It is the `Work` of a drain."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """How many run now."""
        return len(self._tasks)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no handler runs, at most ``timeout_s``. False: some still do."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            return False
        return True

    async def cancel_all(self) -> None:
        """Cancel every task and wait for their end."""
        tasks = [*self._tasks, *self._beside()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _beside(self) -> Iterable[asyncio.Task[Any]]:
        """Tasks that no drain waits for, but that end with the rest."""
        return ()
