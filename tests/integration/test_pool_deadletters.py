"""Dead letters in numbers, and such as nobody has written as they should be."""

from __future__ import annotations

import pytest

from flotta.errors import InvalidName
from flotta.pool.deadletters import Redriven
from flotta.pool.inspection import PoolView
from flotta.redis import Redis


@pytest.fixture
def view(redis: Redis, unique: str) -> PoolView:
    return PoolView(redis, unique)


async def bury(redis: Redis, view: PoolView, count: int, **fields: str) -> list[str]:
    pipe = redis.pipeline(transaction=False)
    for n in range(count):
        entry = {"kind": "job", "key": f"k{n}", "name": "watch", "payload": b"\x80", "error": "ValueError: x", **fields}
        pipe.xadd(view.keys.dead, {**entry, "slot": str(n), "crashes": "2", "losses": "1", "crashes_max": "2"})
    return [entry_id.decode() for entry_id in await pipe.execute()]


async def test_every_letter_comes_once_the_newest_first(redis, view):
    ids = await bury(redis, view, 250)
    assert [letter.id async for letter in view.dead_letters.walk()] == ids[::-1]
    assert [letter.key async for letter in view.dead_letters.walk(key="k3")] == ["k3"]
    assert [letter async for letter in view.dead_letters.walk(kind="task")] == []
    assert await view.dead_letters.count() == 250
    letter = await view.dead_letters.get(ids[7])
    assert letter is not None
    assert (letter.key, letter.attempts, letter.name) == ("k7", 3, "watch")


async def test_many_are_made_again_in_steps_and_each_is_answered(redis, view):
    ids = await bury(redis, view, 250)
    outcomes = await view.dead_letters.redrive([*ids, "1-1", ids[0]])
    assert outcomes == [Redriven.MADE] * 250 + [Redriven.GONE] * 2
    assert await view.dead_letters.count() == 0
    assert (await view.summary()).parked == 250, "no worker is there to take them"


async def test_letter_whose_key_has_a_job_again_stays(redis, view):
    [first] = await bury(redis, view, 1)
    [second] = await bury(redis, view, 1)
    assert await view.dead_letters.redrive([second, first]) == [Redriven.MADE, Redriven.EXISTS]
    assert [letter.id async for letter in view.dead_letters.walk()] == [first]


async def test_letter_that_cannot_be_read_is_shown_as_far_as_it_can(redis, view):
    await redis.xadd(view.keys.dead, {"kind": "task", "key": b"\xff", "error": b"\xc1no failure", "attempts": "many"})
    [letter] = [letter async for letter in view.dead_letters.walk()]
    assert (letter.kind, letter.key, letter.attempts, letter.payload) == ("task", "\ufffd", 0, b"")
    assert "no failure" in letter.error


async def test_deleting_says_how_many_there_were(redis, view):
    ids = await bury(redis, view, 3)
    assert await view.dead_letters.delete([*ids[:2], "1-1"]) == 2
    assert await view.dead_letters.delete([]) == 0
    assert [letter.id async for letter in view.dead_letters.walk()] == ids[2:]


@pytest.mark.parametrize("wrong", ["", "1", "a-b", "1-1-1", "+", "-"])
async def test_id_that_is_none_is_refused(view, wrong):
    for call in (view.dead_letters.redrive([wrong]), view.dead_letters.delete([wrong]), view.dead_letters.get(wrong)):
        with pytest.raises(InvalidName, match="dead letter"):
            await call
