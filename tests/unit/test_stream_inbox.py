"""The buffer between reading and handling: what is cancelled at any step takes nothing with it."""

from __future__ import annotations

import asyncio

import pytest

from flotta.streaming import BYTES, Event
from flotta.streaming.inbox import Inbox


def event(number: int) -> Event[bytes]:
    return Event(f"{number}-0", "n", b"", None, "s", BYTES, 1)


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("how", ["get", "batch", "batch now"])
async def test_a_wait_cancelled_at_any_step_takes_nothing_with_it(before: int, after: int, how: str) -> None:
    inbox: Inbox[bytes] = Inbox(10)
    waits = {"get": inbox.get, "batch": lambda: inbox.batch(3, 0.001), "batch now": lambda: inbox.batch(1, 0)}
    waiting = asyncio.create_task(waits[how]())
    await steps(before)
    inbox.put([event(1), event(2)])
    await steps(after)
    waiting.cancel()
    (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    found = outcome if isinstance(outcome, list) else [outcome]
    taken = [] if isinstance(outcome, asyncio.CancelledError) else found
    assert [each.id for each in taken + inbox.waiting()] == ["1-0", "2-0"]


async def test_several_takers_share_and_none_waits_for_what_is_there() -> None:
    inbox: Inbox[bytes] = Inbox(10)
    takers = [asyncio.create_task(inbox.get()) for _ in range(3)]
    await steps(2)
    inbox.put([event(1), event(2), event(3)])
    found = await asyncio.wait_for(asyncio.gather(*takers), 10)
    assert sorted(taken.id for taken in found if taken) == ["1-0", "2-0", "3-0"]


async def test_a_batch_that_another_taker_emptied_waits_on() -> None:
    inbox: Inbox[bytes] = Inbox(10)
    slow = asyncio.create_task(inbox.batch(3, 0.02))
    await steps(2)
    inbox.put([event(1)])
    await steps(2)
    assert await inbox.batch(1, 0) != []
    await asyncio.wait({slow}, timeout=0.1)  # past its wait for more
    assert not slow.done(), "an empty batch means the end"
    inbox.put([event(2)])
    assert [each.id for each in await asyncio.wait_for(slow, 10)] == ["2-0"]


async def test_what_is_put_back_comes_first() -> None:
    inbox: Inbox[bytes] = Inbox(10)
    inbox.put([event(n) for n in range(4)])
    taken = await inbox.batch(2, 0)
    inbox.put_back(taken)
    assert [each.id for each in await inbox.batch(10, 0)] == [f"{n}-0" for n in range(4)]


async def test_reading_is_held_back_until_half_is_free() -> None:
    inbox: Inbox[bytes] = Inbox(4)
    inbox.put([event(n) for n in range(4)])
    waiting = asyncio.create_task(inbox.has_room())
    await inbox.get()
    await steps(2)
    assert not waiting.done()
    await inbox.get()
    await asyncio.wait_for(waiting, 10)
    assert inbox.room == 2


async def test_an_end_comes_after_what_is_there_and_an_error_stays() -> None:
    inbox: Inbox[bytes] = Inbox(4)
    inbox.put([event(1)])
    inbox.end(OSError("gone"))
    inbox.end()
    assert (await inbox.get() or event(9)).id == "1-0"
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await inbox.get()
        with pytest.raises(OSError, match="gone"):
            await inbox.batch(1, 0)


async def test_handing_out_lets_others_run() -> None:
    inbox: Inbox[bytes] = Inbox(1000)
    inbox.put([event(n) for n in range(1000)])
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    for _ in range(1000):
        await inbox.get()
    running.cancel()
    assert turns >= 1000 // 64
