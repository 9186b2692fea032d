"""Tasks in Redis: one method for each script, typed.

Owns how a batch travels and what an answer means. Invariants: a task is enqueued once whatever happens to the answer
(its id is the client's, and a repeat says that it is one); a turn is never repeated blindly; values stay ``bytes``,
decoding is the caller's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

from flotta.errors import AmbiguousOutcome, NoResult, PoolShutdown, QueueFull, WorkerPoolError
from flotta.pool.keys import PoolKeys
from flotta.pool.tasks import scripts
from flotta.pool.tasks.records import Fetched, TaskInfo, TaskState, parse_fetched, parse_info
from flotta.pool.turns import Turns
from flotta.redis import Arg, Effect, Link
from flotta.redis.repeating import repeating

__all__ = ["BATCH_MAX", "Answer", "Finished", "Item", "TaskStore", "Turn", "Verdict"]

BATCH_MAX: Final = 256
"""Tasks in one script at most: it holds the server for a few milliseconds then."""
HELD_FIELDS: Final = 8
_BATCH_BYTES_MAX: Final = 512 * 1024
_BATCHES_MAX: Final = 8
"""Batches of one ``enqueue_all`` under way at a time."""


Answer = str | WorkerPoolError | None


class Item(NamedTuple):
    """A task to enqueue. ``options``: MessagePack map for the scripts, empty for none. ``fresh``: nobody else can have
    this id."""

    id: str
    name: str
    payload: bytes
    queue: str
    priority: int
    options: bytes
    fresh: bool


class Verdict:
    """How a run ended, as it travels."""

    DONE: Final = b"d"
    FAILED: Final = b"f"
    RETRY: Final = b"r"
    BACK: Final = b"b"
    UNKNOWN: Final = b"u"
    CANCELLED: Final = b"c"


class Finished(NamedTuple):
    """A run that has ended: its value is the result, or how it failed."""

    id: bytes
    fence: bytes
    verdict: bytes
    value: bytes
    delay_ms: int


class Turn(NamedTuple):
    """The answer to a turn."""

    live: bool
    next_due_ms: int
    """Until a task is due; -1: none, or there is more to do at once."""
    more: bool
    refused: list[bytes]
    """Fences of runs that were not this worker's any more."""
    tasks: list[Fetched]


@final
class TaskStore:
    """The tasks of one pool."""

    def __init__(self, link: Link, keys: PoolKeys, *, waiting_max: int, dead_max: int) -> None:
        self._link = link
        self._keys = keys
        self._meta = (keys.meta,)
        self._waiting_max = waiting_max
        self._dead_max = dead_max
        self._enqueuing: Turns[Item, Answer] = Turns(
            self.enqueue_batch,
            name=f"pool {keys.name} enqueue",
            items_max=BATCH_MAX,
            bytes_max=_BATCH_BYTES_MAX,
        )

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self._keys.name

    # --- enqueueing ---------------------------------------------------------------------------------------------

    def enqueue(self, item: Item) -> asyncio.Future[Answer]:
        """Accept one task. It leaves with everything that is enqueued in this turn of the loop.

        Raises when awaited what `enqueue_batch` raises. Cancelling does not take it back.
        """
        return self._enqueuing.add(item, len(item.payload))

    async def enqueue_batch(self, items: Sequence[Item]) -> list[Answer]:
        """Accept many (at most ``BATCH_MAX``) in their order and in one step; each for itself.

        Each answer is None (accepted), the id of the task that is there instead, or the error that refuses this one:
        ``QueueFull``, or ``NoResult`` (a task it should come after is unknown). Raises ``PoolShutdown`` and what
        ``Link.call`` raises.
        """
        args: list[Arg] = []
        for item in items:
            args += item[:6]
        check = b"0" if all(item.fresh for item in items) else b"1"
        try:
            reply = await scripts.ENQUEUE(self._link, keys=self._meta, args=(self._waiting_max, check, *args))
        except AmbiguousOutcome as error:
            reply = await repeating(
                lambda: scripts.ENQUEUE(self._link, keys=self._meta, args=(self._waiting_max, b"1", *args)),
                Effect.CHECKED,
                self._link.options,
                first_error=error,
            )
        return self._answers(reply, items)

    async def enqueue_all(self, items: Sequence[Item]) -> list[Answer]:
        """Accept any number in their order, a few batches at a time. Answers are those of `enqueue_batch`; after a
        refusal no further batches are sent, and there are fewer answers than items.

        Raises what `enqueue_batch` raises; nothing is on its way then. Cancelling: some may have been accepted.
        """
        self._enqueuing.check_loop(asyncio.get_running_loop())
        answers: list[Answer] = []
        batches = _batches(items)
        while group := list(itertools.islice(batches, _BATCHES_MAX)):
            found = await asyncio.gather(*map(self.enqueue_batch, group), return_exceptions=True)
            for answer in found:
                if isinstance(answer, BaseException):
                    raise answer
                answers += answer
            if any(isinstance(answer, WorkerPoolError) for answer in answers[-sum(map(len, group)) :]):
                break
        return answers

    def _answers(self, reply: list[Any], items: Sequence[Item]) -> list[Answer]:
        if reply[0] == b"SHUTDOWN":
            raise PoolShutdown(self.pool)
        answers: list[Answer] = [None] * len(items)
        for number, found in zip(reply[1::2], reply[2::2], strict=True):
            answers[number - 1] = self._answer(items[number - 1], found)
        return answers

    def _answer(self, item: Item, found: list[bytes]) -> Answer:
        if len(found) == 1:
            other = found[0].decode()
            return None if other == item.id and item.fresh else other
        if found[0] == b"FULL":
            return QueueFull(self.pool, int(found[1]), self._waiting_max, what="tasks")
        return NoResult(self.pool, found[1].decode())

    # --- a worker -----------------------------------------------------------------------------------------------

    async def turn(
        self, worker: str, queues: Sequence[str], want: int, finished: Sequence[Finished], unknown: Sequence[bytes] = ()
    ) -> Turn:
        """Say what is finished and take up to ``want`` tasks. ``unknown``: names that were given back as unknown.

        Raises what ``Link.call`` raises. After an ambiguous outcome say ``finished`` again (what was heard is refused
        then), and ask `held` for what was handed out.
        """
        args: list[Arg] = [worker, want, self._dead_max, len(queues), *queues, len(unknown), *unknown]
        for run in finished:
            args += run
        live, next_due_ms, more, refused, tasks = await scripts.TURN(self._link, keys=self._meta, args=args)
        return Turn(live == 1, next_due_ms, more == 1, refused, parse_fetched(tasks))

    async def held(self, worker: str, known: Iterable[bytes] = ()) -> tuple[list[Fetched], set[bytes]]:
        """What ``worker`` runs by the records, and the fences of those that should be cancelled. Of those whose fences
        are ``known`` only id and fence are told."""
        flat = await scripts.HELD(self._link, keys=self._meta, args=(worker, *known))
        tasks = parse_fetched(flat, HELD_FIELDS)
        return tasks, {task.fence for task, mark in zip(tasks, flat[7::HELD_FIELDS], strict=True) if mark}

    async def leave_idle(self, worker: str) -> None:
        """Ring this worker no more."""
        await scripts.IDLE(self._link, keys=self._meta, args=(worker,))

    async def progress(self, worker: str, id: bytes, fence: bytes, progress: bytes) -> int:  # noqa: A002
        """1: noted, 2: noted, and the task should be cancelled, 0: refused."""
        return int(await scripts.PROGRESS(self._link, keys=self._meta, args=(worker, id, fence, progress)))

    async def reap(self, worker: str, *, blame: bool, limit: int = 100) -> int:
        """Take back what a worker without a lease held. How many are left; -1: its lease is valid."""
        args = (worker, int(blame), limit, self._dead_max)
        return int(await scripts.REAP(self._link, keys=self._meta, args=args))

    # --- one task -----------------------------------------------------------------------------------------------

    async def cancel(self, id: str) -> TaskState | None:  # noqa: A002
        """Its state afterwards (running: its worker was told), None for an unknown one."""
        state = (await scripts.CANCEL(self._link, keys=self._meta, args=(id,))).decode()
        if not state:
            return None
        return TaskState.RUNNING if state == "cancelling" else TaskState(state)

    async def await_ended(self, node: str, ids: Sequence[str]) -> list[tuple[TaskState | None, bytes]]:
        """State and value of each; the ones that have not ended will tell ``node`` (empty: nobody). None: unknown."""
        flat = await scripts.AWAIT(self._link, keys=self._meta, args=(node, *ids))
        states = (TaskState(state.decode()) if state else None for state in flat[::2])
        return list(zip(states, flat[1::2], strict=True))

    async def info(self, id: str) -> TaskInfo | None:  # noqa: A002
        """What is known of it; None: nothing."""
        fields = await self._link.call("HGETALL", self._keys.task(id))
        return parse_info(id, fields) if fields else None

    # --- all of them --------------------------------------------------------------------------------------------

    async def redrive(self, entries: Sequence[str]) -> list[str | None]:
        """Make tasks of these dead letters again; the id of each, empty for one that is gone or a job's, None for one
        that stays because the pool shuts down."""
        made = await scripts.REDRIVE(self._link, keys=self._meta, args=tuple(entries))
        return [None if task_id is None else task_id.decode() for task_id in made]

    async def totals(self) -> Mapping[str, int]:
        """Counters of the whole pool since its data began: ``waiting`` (now), ``enqueued``, ``done``, ``failed``,
        ``cancelled``, ``retried``, ``lost`` (taken back from dead workers), ``redriven``."""
        raw = await self._link.call("HGETALL", f"{self._keys.prefix}tasks")
        return {name.decode(): int(value) for name, value in raw.items() if name != b"seq"}


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """As many as one script may take."""
    first = size = 0
    for number, item in enumerate(items):
        item_bytes = len(item.payload) + len(item.options)
        if number > first and (number - first == BATCH_MAX or size + item_bytes > _BATCH_BYTES_MAX):
            yield items[first:number]
            first, size = number, 0
        size += item_bytes
    if first < len(items):
        yield items[first:]
