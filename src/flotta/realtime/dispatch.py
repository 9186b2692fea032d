"""Runs the user's handlers: in order per socket, bounded, owned.

A client's events are handled one after the other by default (``handlers_max=1``): a client that sends ``open``,
``draw``, ``close`` means that order, and a handler that awaits a database must not let the next event overtake it.
Events of different clients, and of different namespaces of one client, run beside each other. Acknowledgements pass the
queue, so a handler may wait for one.

When ``backlog_max`` events of a socket wait, its connection is not read until half of them are done: TCP slows that
client, memory stays bounded, nobody else notices.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Coroutine
from typing import Any, final

from flotta.errors import ConnectRefused
from flotta.realtime.client import Client, Reason, Socket
from flotta.realtime.handlers import Handlers

__all__ = ["Dispatcher"]

CALLERS_MAX = 32
"""``connect`` and ``disconnect`` handlers of one client that may run at once before it is read no further."""
# A handler may raise anything; it is logged with its traceback. CancelledError too: it may have awaited a task that
# somebody else cancelled, and that must not end the work of its socket.
_ANY_FAILURE = (Exception, asyncio.CancelledError)


@final
class Dispatcher:
    """Calls handlers and owns the tasks that the async ones need."""

    def __init__(self, *, handlers_max: int, backlog_max: int, connect_timeout_s: float, logger: Any) -> None:
        self._handlers_max = handlers_max
        self._backlog_max = backlog_max
        self._connect_timeout_s = connect_timeout_s
        self._log = logger
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed = 0
        """Handlers that raised."""

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return len(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def run(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run a coroutine of the user's beside the handlers; its exception is logged."""
        self._spawn(self._guard(work, name), name)

    async def _guard(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        try:
            await work
        except _ANY_FAILURE as error:
            _let_cancelling_through(error)
            self.failed += 1
            self._log.exception("handler failed", realtime_event=name)

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
        """Cancel every handler and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- connect ---

    def connect(self, client: Client, socket: Socket, handlers: Handlers, auth: Any) -> None:
        """Ask the ``connect`` handler and tell the client."""
        if handlers.has("connect"):
            self._begin_call(client)
            self._spawn(self._connect(client, socket, handlers, auth), f"connect {socket.sid}")
        else:
            client.accept(socket)

    def _begin_call(self, client: Client) -> None:
        """One more ``connect`` or ``disconnect`` handler: a client that comes and goes is read no faster than they
        run."""
        client.callers += 1
        if client.callers == CALLERS_MAX:
            client.pause()

    def _end_call(self, client: Client) -> None:
        client.callers -= 1
        if client.callers == CALLERS_MAX - 1:
            client.resume()

    async def _connect(self, client: Client, socket: Socket, handlers: Handlers, auth: Any) -> None:
        try:
            await self._ask_and_tell(client, socket, handlers, auth)
        finally:
            self._end_call(client)

    async def _ask_and_tell(self, client: Client, socket: Socket, handlers: Handlers, auth: Any) -> None:
        refusal = await self._ask(client, socket, handlers, auth)
        if refusal is not None:
            client.turn_away(socket, refusal.message, refusal.data)
        elif not client.accept(socket):
            # The client went while the handler ran; who was told of its coming is told of its going.
            await self._call_disconnect(socket, handlers, Reason.TRANSPORT_CLOSE)

    async def _ask(self, client: Client, socket: Socket, handlers: Handlers, auth: Any) -> ConnectRefused | None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                answer = handlers.call_reserved("connect", socket.sid, client.environ(), auth)
                if inspect.isawaitable(answer):
                    answer = await answer
        except ConnectRefused as refusal:
            return refusal
        except _ANY_FAILURE as error:
            _let_cancelling_through(error)
            self._failure("connect", socket)
            return ConnectRefused("internal error")
        return ConnectRefused("Connection rejected by server") if answer is False else None

    # --- events and disconnect ---

    def event(self, socket: Socket, handlers: Handlers, args: list[Any], ack_id: int | None) -> None:
        """Handle an event now, or when its turn comes."""
        self._submit(socket, handlers, args, ack_id)

    def disconnected(self, socket: Socket, handlers: Handlers, reason: str) -> None:
        """Run the ``disconnect`` handler after the events that came before."""
        if handlers.has("disconnect"):
            self._begin_call(socket.client)
            self._submit(socket, handlers, reason, None)

    def _submit(self, socket: Socket, handlers: Handlers, job: list[Any] | str, ack_id: int | None) -> None:
        if socket.running >= self._handlers_max:
            if socket.backlog is None:
                socket.backlog = deque()
            socket.backlog.append((job, ack_id))
            if len(socket.backlog) >= self._backlog_max and not socket.paused:
                socket.paused = True
                socket.client.pause()
            return
        rest = self._start(socket, handlers, job, ack_id)
        if rest is not None:
            socket.running += 1
            self._spawn(self._work(socket, handlers, rest), f"handlers {socket.sid}")

    def _start(
        self, socket: Socket, handlers: Handlers, job: list[Any] | str, ack_id: int | None
    ) -> Coroutine[Any, Any, None] | None:
        """Call the handler. None: it was sync and is done; else what is left to await."""
        last = isinstance(job, str)
        name = "disconnect" if isinstance(job, str) else job[0]
        try:
            if isinstance(job, str):
                result = handlers.call_reserved("disconnect", socket.sid, job)
            else:
                result = handlers.call_event(job[0], socket.sid, job[1:])
            if inspect.isawaitable(result):
                return self._finish(socket, name, result, ack_id, last=last)
            self._acknowledge(socket, ack_id, result)
        except _ANY_FAILURE:
            self._failure(name, socket)
        if last:
            self._end_call(socket.client)
        return None

    async def _finish(self, socket: Socket, name: str, result: Any, ack_id: int | None, *, last: bool) -> None:
        try:
            self._acknowledge(socket, ack_id, await result)
        except _ANY_FAILURE as error:
            _let_cancelling_through(error)
            self._failure(name, socket)
        finally:
            if last:
                self._end_call(socket.client)

    async def _work(self, socket: Socket, handlers: Handlers, rest: Coroutine[Any, Any, None] | None) -> None:
        """Finish one handler, then those that wait, one after the other."""
        try:
            while True:
                if rest is not None:
                    await rest
                if not socket.backlog:
                    break
                job, ack_id = socket.backlog.popleft()
                self._relieve(socket)
                rest = self._start(socket, handlers, job, ack_id)
        finally:
            socket.running -= 1

    def _relieve(self, socket: Socket) -> None:
        if socket.paused and len(socket.backlog or ()) <= self._backlog_max // 2:
            socket.paused = False
            socket.client.resume()

    def _acknowledge(self, socket: Socket, ack_id: int | None, result: Any) -> None:
        if ack_id is not None:
            socket.acknowledge(ack_id, _args(result))

    async def _call_disconnect(self, socket: Socket, handlers: Handlers, reason: str) -> None:
        try:
            result = handlers.call_reserved("disconnect", socket.sid, reason)
            if inspect.isawaitable(result):
                await result
        except _ANY_FAILURE as error:
            _let_cancelling_through(error)
            self._failure("disconnect", socket)

    def _failure(self, event: str, socket: Socket) -> None:
        self.failed += 1
        self._log.exception("handler failed", realtime_event=event, sid=socket.sid, namespace=socket.namespace)


def _let_cancelling_through(error: BaseException) -> None:
    """Raise it again if it is this task that is being cancelled."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _args(result: Any) -> list[Any]:
    """The arguments of an acknowledgement: a tuple is several, None is none, anything else is one."""
    if result is None:
        return []
    return list(result) if isinstance(result, tuple) else [result]
