"""The bound of what is on its way to one other instance."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from flotta.realtime.relay.budget import Budget


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["come", "end", "cancel"]), st.sampled_from("ab"), st.integers(0, 150)), max_size=60
    )
)
def test_never_more_than_the_bound_and_always_on(steps: list[tuple[str, str, int]]) -> None:
    asyncio.run(_run(steps))


async def _run(steps: list[tuple[str, str, int]]) -> None:
    budget = Budget(100)
    inside: dict[str, list[int]] = {"a": [], "b": []}
    running: list[tuple[asyncio.Task[None], asyncio.Event]] = []

    async def use(instance: str, size: int, end: asyncio.Event) -> None:
        async with budget.spend(instance, size):
            inside[instance].append(size)
            try:
                await end.wait()
            finally:
                inside[instance].remove(size)

    for what, instance, size in steps:
        if what == "come":
            end = asyncio.Event()
            running.append((asyncio.create_task(use(instance, size, end)), end))
        elif running:
            task, end = running.pop(size % len(running))
            if what == "cancel":
                task.cancel()
            end.set()
        await asyncio.sleep(0)
        for sizes in inside.values():
            held = [size for size in sizes if size]
            assert sum(held) <= 100 or len(held) == 1
    for _, end in running:
        end.set()
    await asyncio.wait_for(asyncio.gather(*(task for task, _ in running)), 5)
    assert budget.spent_bytes == 0
    assert not budget._waiting
