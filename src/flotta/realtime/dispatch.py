"""Runs the user's handlers: in order per socket, bounded, owned.

A client's events are handled one after the other by default (``handlers_max=1``): a client that sends ``open``,
``draw``, ``close`` means that order, and a handler that awaits a database must not let the next event overtake it.
Events of different clients, and of different namespaces of one client, run beside each other. Acknowledgements pass the
queue, so a handler may wait for one.

What a client sends right behind its CONNECT, without waiting for the answer, waits for the ``connect`` handler: all
places of `handlers_max` count as taken until that is done. Accepted, its events are handled, those of a client that has
left by itself meanwhile too; refused, they are forgotten.

When ``backlog_max`` events of a socket wait, its connection is not read until half of them are done: TCP slows that
client, memory stays bounded, nobody else notices.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable
from types import CoroutineType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast, final

from flotta.errors import ConnectRefused, RedisError
from flotta.realtime.client import Client, Reason, Socket
from flotta.realtime.delivery import Leaving, Space
from flotta.realtime.engine.running import ANY_FAILURE, Running, let_cancelling_through
from flotta.realtime.handlers import UNHANDLED, Handlers
from flotta.realtime.middleware import finish
from flotta.realtime.targets import args_of

__all__ = ["Dispatcher"]

CALLERS_MAX = 32
"""``connect`` and ``disconnect`` handlers of one client that may run at once before it is read no further."""


T = TypeVar("T")

REJECTED = "Connection rejected by server"
SENT_AWAY = frozenset({Reason.SERVER_DISCONNECT, Reason.EXPIRED, Reason.REVOKED})
"""Whoever is disconnected for these may do nothing more: what waits of it is not handled."""


class Farewell(NamedTuple):
    """One of the last handlers of a socket."""

    event: str
    reason: str
    space: Space
    last: bool


class Recovery(Protocol):
    """Connection state recovery, at the places where a client comes in."""

    async def restore(self, socket: Socket, auth: Any) -> bool:
        """Give the socket its old session, if it asks for one. False: it has gone meanwhile."""
        ...

    def trusts(self, socket: Socket) -> bool:
        """Nobody needs to be asked about this client again."""
        ...

    async def admit(self, socket: Socket) -> ConnectRefused | None:
        """The client will be let in: see that its session survives this process. Or a refusal after all."""
        ...

    async def accepted(self, socket: Socket) -> None:
        """The client is in: send what it missed."""
        ...


Job: TypeAlias = list[Any] | Farewell
"""An event with its arguments, or a last handler."""
Turn: TypeAlias = tuple[Job, int | None, Awaitable[Any]]
"""A handler that has begun: what for, the acknowledgement's id, what is left to await."""

if sys.version_info >= (3, 12):

    def _begin(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that runs at once up to its first pause: a handler without one never enters the loop."""
        return asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, eager_start=True)

else:

    def _begin(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task; it begins when the loop comes to it."""
        return asyncio.get_running_loop().create_task(work, name=name)


@final
class Dispatcher(Running):
    """Calls handlers and owns the tasks that the async ones need."""

    def __init__(self, *, handlers_max: int, backlog_max: int, connect_timeout_s: float, logger: Any) -> None:
        super().__init__()
        self._handlers_max = handlers_max
        self._backlog_max = backlog_max
        self._connect_timeout_s = connect_timeout_s
        self._log = logger
        self._background: set[asyncio.Task[Any]] = set()
        self.failed = 0
        """Handlers that raised."""
        self.recovery: Recovery | None = None

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
        except ANY_FAILURE as error:
            let_cancelling_through(error)
            self.failed += 1
            self._log.exception("handler failed", realtime_event=name)

    def keep(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run a coroutine of the user's that no drain waits for; `cancel_all` ends it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._kept)
        return task

    def _kept(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("background task failed", task=task.get_name(), exc_info=error)

    def _beside(self) -> Iterable[asyncio.Task[Any]]:
        return self._background

    # --- connect ---

    def connect(self, client: Client, socket: Socket, space: Space, auth: Any) -> None:
        """Ask who decides about the client and tell it."""
        if space.gate is not None or space.handlers.asks_connect or self.recovery is not None:
            self._begin_call(client)
            if space.gate is not None:
                space.gate.come()
            socket.running = self._handlers_max  # until `_begin_waiting`
            self._spawn(self._connect(client, socket, space, auth), f"connect {socket.sid}")
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

    async def _connect(self, client: Client, socket: Socket, space: Space, auth: Any) -> None:
        left: Leaving | None = None
        recovery = self.recovery
        try:
            if recovery is not None and not await recovery.restore(socket, auth):
                return
            refusal = await self._ask(client, socket, space, auth)
            if recovery is not None and refusal is None:
                refusal = await recovery.admit(socket)
            if refusal is not None:
                self._turn_away(client, socket, refusal)
            elif client.accept(socket):
                self._begin_waiting(socket, space.handlers)
                if recovery is not None:
                    await recovery.accepted(socket)
            else:
                # The client went while the handler ran; who was told of its coming is told of its going.
                left = space.leaving.get(socket.sid)
        except Exception:  # noqa: BLE001 - our bug, or an adapter's: nobody may be left in between
            self._failure("connect", socket)
            if socket.connecting:
                client.turn_away(socket, "internal error")
            else:
                client.close(Reason.TRANSPORT_ERROR, 1011)
        finally:
            self._decided(socket, space, left)

    def _decided(self, socket: Socket, space: Space, left: Leaving | None) -> None:
        """``left``: it would be in, but has gone meanwhile."""
        space.leaving.pop(socket.sid, None)
        if left is not None:
            self._begin_waiting(socket, space.handlers)
            self._say_goodbye(left, space)
        elif socket.connecting:
            self._forget_waiting(socket)
        if space.gate is not None:
            space.gate.go()
        self._end_call(socket.client)

    def _turn_away(self, client: Client, socket: Socket, refusal: ConnectRefused) -> None:
        try:
            client.turn_away(socket, refusal.message, refusal.data)
        except (TypeError, ValueError):  # what it says beside the message cannot travel
            self._failure("connect", socket)
            client.turn_away(socket, refusal.message)

    async def _ask(self, client: Client, socket: Socket, space: Space, auth: Any) -> ConnectRefused | None:
        """None: the client may come in."""
        limit = asyncio.timeout(self._connect_timeout_s)
        try:
            async with limit:
                environ = client.environ()
                if socket.kept is not None:
                    environ = {**environ, "flotta.recovered": socket.kept.recovered}
                if space.gate is not None and not await space.gate.admit(auth, environ):
                    return ConnectRefused("Invalid namespace")
                trusted = self.recovery is not None and self.recovery.trusts(socket)
                for guard in () if trusted else space.handlers.guards(socket.sid, environ, auth):
                    refused = await finish(guard()) is False
                    if refused or client.sockets.get(socket.namespace) is not socket:  # or it has left: tell nobody
                        return ConnectRefused(REJECTED)
                answer = None if trusted else space.handlers.call_reserved("connect", socket.sid, environ, auth)
                if await finish(answer) is False:
                    return ConnectRefused(REJECTED)
        except ConnectRefused as refusal:
            return refusal
        except ANY_FAILURE as error:
            let_cancelling_through(error)
            if limit.expired():
                error.add_note(f"connect and what decides before it have connect_timeout_s={self._connect_timeout_s}")
            self._failure("connect", socket)
            return ConnectRefused("internal error")
        return await self._open(client, socket, space)

    async def _open(self, client: Client, socket: Socket, space: Space) -> ConnectRefused | None:
        """A dynamic namespace must be known to the adapter before somebody is in it; not for who has left again."""
        if space.gate is None or client.sockets.get(socket.namespace) is not socket:
            return None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await space.gate.open()
        except (RedisError, TimeoutError):  # told by who opens it
            return ConnectRefused("Namespace unavailable")
        return None

    # --- events and disconnect ---

    def event(self, socket: Socket, handlers: Handlers, args: list[Any], ack_id: int | None) -> None:
        """Handle an event now, or when its turn comes."""
        self._submit(socket, handlers, args, ack_id)

    def left(self, leaving: Leaving, space: Space) -> None:
        """A socket has left: run its last handlers after those that run, and after the events that wait."""
        if leaving.reason in SENT_AWAY:
            self._forget_waiting(leaving.socket)
        if leaving.socket.connecting:
            space.leaving[leaving.socket.sid] = leaving  # `_connect` goes on with it
        else:
            self._say_goodbye(leaving, space)

    def _say_goodbye(self, leaving: Leaving, space: Space) -> None:
        socket = leaving.socket
        events = [event for event in ("disconnecting", "disconnect") if space.handlers.has(event)]
        if events:
            space.leaving[socket.sid] = leaving
            if space.gate is not None:
                space.gate.come()  # the handlers ask for what it was here
        for event in events:
            self._begin_call(socket.client)
            self._submit(socket, space.handlers, Farewell(event, leaving.reason, space, event == events[-1]), None)

    def _said_goodbye(self, socket: Socket, farewell: Farewell) -> None:
        if farewell.last:
            farewell.space.leaving.pop(socket.sid, None)
            if farewell.space.gate is not None:
                farewell.space.gate.go()
        self._end_call(socket.client)

    def _submit(self, socket: Socket, handlers: Handlers, job: Job, ack_id: int | None) -> None:
        # The last handlers come after all others, and one after the other.
        if socket.running >= self._handlers_max or (socket.running and type(job) is Farewell):
            if socket.backlog is None:
                socket.backlog = deque()
            socket.backlog.append((job, ack_id))
            if len(socket.backlog) >= self._backlog_max and not socket.paused:
                socket.paused = True
                socket.client.pause()
            return
        result = self._call(socket, handlers, job, ack_id)
        if result is not None:
            socket.running += 1
            task = _begin(self._work(socket, handlers, (job, ack_id, result)), f"handlers {socket.sid}")
            if not task.done():
                self._tasks.add(task)

    def _call(self, socket: Socket, handlers: Handlers, job: Job, ack_id: int | None) -> Awaitable[Any] | None:
        """Call the handler. None: it was sync and is done; else what is left to await."""
        try:
            if isinstance(job, Farewell):
                result = handlers.call_reserved(job.event, socket.sid, job.reason)
            else:
                result = handlers.call_event(job[0], socket.sid, job[1:])
            if type(result) is CoroutineType or inspect.isawaitable(result):
                return result
            self._acknowledge(socket, ack_id, result)
        except ANY_FAILURE:
            self._failure(job, socket)
        if isinstance(job, Farewell):
            self._said_goodbye(socket, job)
        return None

    async def _work(self, socket: Socket, handlers: Handlers, turn: Turn | None) -> None:
        """Finish one handler, then those that wait, one after the other. Its task leaves the set by itself: a callback
        for that would be another turn of the loop for each event."""
        try:
            while turn is not None:
                job, ack_id, result = turn
                try:
                    self._acknowledge(socket, ack_id, await result)
                except ANY_FAILURE as error:
                    let_cancelling_through(error)
                    self._failure(job, socket)
                finally:
                    if isinstance(job, Farewell):
                        self._said_goodbye(socket, job)
                turn = self._next(socket, handlers) if socket.backlog else None
        finally:
            socket.running -= 1
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next(self, socket: Socket, handlers: Handlers) -> Turn | None:
        """Call the handlers that wait until one is left to await."""
        while socket.backlog:
            if socket.running > 1 and type(socket.backlog[0][0]) is Farewell:
                return None  # for the one that ends last
            job, ack_id = socket.backlog.popleft()
            self._relieve(socket)
            result = self._call(socket, handlers, job, ack_id)
            if result is not None:
                return job, ack_id, result
        return None

    def _begin_waiting(self, socket: Socket, handlers: Handlers) -> None:
        """The ``connect`` handler is done: handle what came meanwhile, so many at once as may be."""
        socket.running = 0
        while socket.backlog and socket.running < self._handlers_max:
            socket.running += 1  # as in `_work`: what a handler brings about here comes after what waits
            turn = self._next(socket, handlers)
            if turn is None:
                socket.running -= 1
                return
            task = _begin(self._work(socket, handlers, turn), f"handlers {socket.sid}")
            if not task.done():
                self._tasks.add(task)

    def _forget_waiting(self, socket: Socket) -> None:
        if socket.backlog:
            socket.backlog.clear()
            self._relieve(socket)

    def _relieve(self, socket: Socket) -> None:
        if socket.paused and len(socket.backlog or ()) <= self._backlog_max // 2:
            socket.paused = False
            socket.client.resume()

    def _acknowledge(self, socket: Socket, ack_id: int | None, result: Any) -> None:
        if ack_id is not None and result is not UNHANDLED:
            socket.acknowledge(ack_id, args_of(result))

    def _failure(self, job: Job | str, socket: Socket) -> None:
        event = job if isinstance(job, str) else job.event if isinstance(job, Farewell) else job[0]
        self.failed += 1
        self._log.exception("handler failed", realtime_event=event, sid=socket.sid, namespace=socket.namespace)
