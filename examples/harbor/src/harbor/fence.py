"""Waiting until every instance has taken over what was published before.

A write into a replicated map reaches the other instances within moments; `Fence.wait` says when it has. It publishes a
question and waits for as many answers as Redis says it had receivers. Each instance hears its maps' changes and the
question over one connection, in order: so whoever has answered reads the new values. What is decided where it has its
effect, by the values that are read there (`harbor.live.broadcast`), is decided by the new ones from then on.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import final

from flotta.redis import Redis, Subscription
from harbor.problem import Problem

__all__ = ["Fence"]

ANSWER_S = 2.0


@final
class Fence:
    """One per instance. `start` before use, `aclose` after."""

    def __init__(self) -> None:
        self._redis: Redis | None = None
        self._subscriptions: list[Subscription] = []
        self._waiting: dict[bytes, _Count] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._question = b""
        self._answer = b""

    async def start(self, redis: Redis) -> None:
        self._redis = redis
        self._question = redis.key("harbor:fence").encode()
        self._answer = redis.key(f"harbor:fence:{secrets.token_hex(8)}").encode()
        self._subscriptions = [await redis.hub.subscribe(channel, self) for channel in (self._answer, self._question)]

    async def aclose(self) -> None:
        for subscription in self._subscriptions:
            await subscription.aclose()
        self._subscriptions = []
        if self._answers:
            await asyncio.wait(self._answers, timeout=ANSWER_S)

    async def wait(self) -> None:
        """Returns when every instance has taken over all that was published before this call.

        Raises `Problem` 503 if one has not answered within 2 s (it hangs, or was just killed): call again.
        """
        assert self._redis is not None, "started"
        number = secrets.token_hex(8).encode()
        count = self._waiting[number] = _Count()
        try:
            async with asyncio.timeout(ANSWER_S):
                receivers = await self._redis.link.call("PUBLISH", self._question, number + b" " + self._answer)
                await count.until(int(receivers))
        except TimeoutError as error:
            raise Problem(503, "unconfirmed", "An instance has not confirmed the change. Please repeat it.") from error
        finally:
            del self._waiting[number]

    def on_message(self, channel: bytes, payload: bytes) -> None:
        if channel == self._answer:
            if (count := self._waiting.get(payload)) is not None:
                count.add()
            return
        number, _, reply_to = payload.partition(b" ")
        task = asyncio.get_running_loop().create_task(self._reply(reply_to, number), name="answer a fence")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    def on_lost(self) -> None:
        """Missed questions are missed: whoever asked waits in vain and asks again."""

    def on_restored(self) -> None:
        """Maps load themselves anew; nothing is kept here."""

    async def _reply(self, reply_to: bytes, number: bytes) -> None:
        assert self._redis is not None, "started"
        async with asyncio.timeout(ANSWER_S):
            await self._redis.link.call("PUBLISH", reply_to, number)


@final
class _Count:
    """Answers so far, and who waits for how many."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        self._count += 1
        self._changed.set()

    async def until(self, wanted: int) -> None:
        while self._count < wanted:
            self._changed.clear()
            await self._changed.wait()
