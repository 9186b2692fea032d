"""Events that clients acknowledge: call one client, or all of a room, on whatever instance they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flotta.errors import AckTimeout, ClusterTimeout, RealtimeError
from flotta.realtime.adapters import Broadcast, Target
from flotta.realtime.api.base import Base, Names, client_event, target_of, value_of
from flotta.realtime.api.question import Question
from flotta.realtime.client import Socket
from flotta.realtime.handlers import finish

__all__ = ["CALLBACK_S", "Asking"]

CALLBACK_S = 60.0
"""How long a client may take to answer, unless the call says otherwise."""


class Asking(Base):
    """The part of `Server` that waits for acknowledgements."""

    async def call(
        self,
        event: str,
        data: Any = None,
        *,
        to: str | None = None,
        sid: str | None = None,
        namespace: str = "/",
        timeout_s: float = CALLBACK_S,
        local: bool = False,
    ) -> Any:
        """Send an event to one client, on any instance, and wait for its acknowledgement.

        Gives its argument, a tuple if there are several, None if there is none. Cancelling stops the waiting only.

        Args:
            to: the client's session id. python-socketio's other name for it is ``sid``.
            local: look for it on this instance only.

        Raises:
            AckTimeout: none came within ``timeout_s``; or at once, if no instance has this client, or if it leaves.
                That it has left a Node server is not heard of, nor that its instance was killed: that takes
                ``timeout_s``.
            LinkUnavailable: the client is not here, and Redis is away.
            NotStarted: before `start`.
        """
        to = to or sid
        if not isinstance(to, str):
            raise TypeError("call needs to=, one session id; call_all asks several clients")
        args = client_event(event, data)
        socket = self._socket(to, namespace)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                if socket is not None:
                    await self._adapter_in_use.settled()
                    found = await _ask_here(socket, args)
                else:
                    found = await self._ask_elsewhere(Target(namespace, (to,)), args, timeout_s, local=local)
        except TimeoutError:
            raise AckTimeout(event, timeout_s) from None
        if found is None:
            raise AckTimeout(event, loop.time() - began_s, gone=True)
        return value_of(found)

    async def _ask_elsewhere(
        self, target: Target, args: list[Any], timeout_s: float, *, local: bool
    ) -> list[Any] | None:
        question = Question(first=True)
        await self._ask(question, target, args, timeout_s, local=local)
        return question.answers[0] if question.answers else None

    async def call_all(
        self,
        event: str,
        data: Any = None,
        *,
        to: Names = None,
        room: Names = None,
        user: Names = None,
        skip_sid: Names = None,
        namespace: str = "/",
        timeout_s: float = CALLBACK_S,
        local: bool = False,
    ) -> list[Any]:
        """Send an event to the clients of a room (or user, or all) on every instance and wait for all acknowledgements.

        Gives one value for each client (as `call` does), in the order of their coming. Cancelling stops the waiting
        only. Targets as in `emit`.

        Raises:
            ClusterTimeout: somebody has not answered within ``timeout_s``, or has left without (then as soon as all
                others have; of a Node server's clients it is not heard); ``.answers`` holds what came.
            LinkUnavailable: Redis is away; nobody was asked.
            NotStarted: before `start`.
        """
        target = target_of(namespace, to, room, user, skip_sid)
        if target is None:
            return []
        args = client_event(event, data)
        loop = asyncio.get_running_loop()
        question, began_s, waited_s = Question(), loop.time(), timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(question, target, args, timeout_s, local=local)
                waited_s = loop.time() - began_s
        except TimeoutError:
            pass
        answers = [value_of(answer) for answer in question.answers]
        if not question.complete:
            raise ClusterTimeout(
                f"call_all {event}",
                expected=question.clients,
                answered=len(answers),
                waited_s=waited_s,
                answers=answers,
            )
        return answers

    async def _ask(self, question: Question, target: Target, args: list[Any], timeout_s: float, *, local: bool) -> None:
        """Ask the clients of all instances; returns when nothing more can come. The others first: if they cannot be
        reached, nobody is asked."""
        adapter, delivery = self._adapter_in_use, self._core.delivery
        await adapter.settled()
        only_here = self._only_here(target)
        delivery.encode(Broadcast(target, args))  # what cannot travel is sent to nobody
        async with self._hearing(target.namespace):
            servers = 1
            if not (local or only_here or adapter.alone):
                heard = question.on_count, question.on_ack, question.on_gone
                servers += await adapter.ask(target, args, *heard, timeout_s=timeout_s)
            question.on_count(delivery.ask(target, args, question.on_ack, timeout_s, question.on_gone))
            question.sent(servers)
            await question.wait()

    async def _emit_with_callback(
        self, target: Target, args: list[Any], callback: Callable[..., Any], *, local: bool, timeout_s: float
    ) -> None:
        if len(target.rooms) != 1:
            raise RealtimeError("a callback needs one session id as its target: call_all asks several clients")
        name, rooms = target.rooms[0], self._space(target.namespace).rooms
        if name in rooms and rooms.get(name) is None:
            raise RealtimeError(f"a callback needs one session id, and {name!r} is a room: call_all asks it")

        def on_answer(found: list[Any] | None) -> None:
            if found is not None:
                self._core.dispatcher.run(_call(callback, found), f"ack of {args[0]}")

        adapter = self._adapter_in_use
        await adapter.settled()
        socket = self._socket(target.rooms[0], target.namespace)
        if socket is not None:
            socket.emit(args, on_answer)
        elif not (local or adapter.alone):
            async with self._hearing(target.namespace):
                await adapter.ask(target, args, _ignore, on_answer, lambda: None, timeout_s=timeout_s)


async def _ask_here(socket: Socket, args: list[Any]) -> list[Any] | None:
    """The client's answer; None as soon as it has left."""
    answer: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()

    def on_answer(found: list[Any] | None) -> None:
        if not answer.done():
            answer.set_result(found)

    ack_id = socket.emit(args, on_answer)
    assert ack_id is not None
    try:
        return await answer
    finally:
        socket.forget_ack(ack_id)


def _ignore(_clients: int) -> None:
    """Whoever has the client answers."""


async def _call(callback: Callable[..., Any], args: list[Any]) -> None:
    await finish(callback(*args))
