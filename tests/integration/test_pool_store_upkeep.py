"""What coordinators do with the jobs of a pool: sweeping, reaping, burying, adopting, redriving, shutting down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flotta.pool.jobs.records import Adopted, Reaped, Swept
from flotta.pool.jobs.states import Answer, BuryAnswer, CrashAnswer, JobState, RedriveAnswer
from flotta.pool.keys import PoolKeys
from flotta.pool.wire import Ring
from flotta.redis import Redis
from pool_stage import Stage


@pytest.fixture
async def stage(redis: Redis, unique: str) -> AsyncIterator[Stage]:
    stage = Stage(redis, f"upkeep-{unique}", ack_grace_s=20)
    await stage.node("n1")
    await stage.worker("w1")
    await stage.worker("w2")
    await stage.slots("w1")
    yield stage
    await stage.store.purge()


async def make_late(stage: Stage, *keys: str) -> None:
    await stage.redis.link.call("ZADD", stage.keys.queued, *[part for key in keys for part in (1, key)])


async def test_a_job_that_its_worker_does_not_claim_goes_to_another_one(stage: Stage) -> None:
    old = await stage.queued("k")
    assert await stage.store.sweep(["w1", "w2"]) == Swept(0, 0, 0)
    await make_late(stage, "k")
    assert await stage.store.sweep(["w1", "w2"]) == Swept(1, 0, 0)
    (bell,) = await stage.bells("w2")
    assert bell.fence > old
    assert (await stage.store.claim("w1", "k", old)).answer is Answer.FENCED
    assert await stage.store.sweep(["w1", "w2"]) == Swept(0, 0, 0)
    assert (await stage.store.claim("w2", "k", bell.fence)).answer is Answer.OK


async def test_where_nobody_else_could_take_it_the_owner_is_rung_again(stage: Stage) -> None:
    fence = await stage.queued("k")
    await make_late(stage, "k")
    await stage.expire("w2")
    assert await stage.store.sweep(["w1", "w2"]) == Swept(0, 1, 0)
    assert [(bell.type, bell.fence) for bell in await stage.bells("w1")] == [("start", fence)] * 2


async def test_a_parked_job_that_no_worker_can_take_stays_parked_and_is_swept_later(stage: Stage) -> None:
    await stage.expire("w1")
    await stage.queued("k")
    await make_late(stage, "k")
    assert await stage.store.sweep([]) == Swept(0, 0, 1)
    assert await stage.store.sweep(["w2"]) == Swept(0, 0, 0)
    await make_late(stage, "k")
    assert await stage.store.sweep(["w2"]) == Swept(1, 0, 0)


async def test_a_sweep_takes_a_bounded_step(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"step-{unique}", step_max=10)
    await stage.worker("w1")
    await stage.worker("w2")
    await stage.slots("w1")
    keys = [f"k{i}" for i in range(25)]
    await asyncio.gather(*[stage.queued(key) for key in keys])
    await make_late(stage, *keys)
    assert [(await stage.store.sweep(["w2"])).moved for _ in range(4)] == [10, 10, 5, 0]
    await stage.store.purge()


async def test_the_jobs_of_the_dead_go_to_the_owners_of_their_slots_in_bounded_steps(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"reap-{unique}", step_max=10)
    await stage.worker("w1")
    await stage.worker("w2")
    await stage.slots("w1")
    fences = dict(
        zip(map(str, range(25)), await asyncio.gather(*[stage.running(str(i)) for i in range(25)]), strict=True)
    )
    assert await stage.store.reap("w1", blame=True) is None
    await stage.expire("w1")
    await stage.slots("w2")
    assert [await stage.store.reap("w1", blame=True) for _ in range(3)] == [
        Reaped(15, moved=10), Reaped(5, moved=10), Reaped(0, moved=5),
    ]  # fmt: skip
    bells = await stage.bells("w2")
    assert sorted(bell.key for bell in bells) == sorted(fences)
    assert all(bell.fence > fences[bell.key] for bell in bells)
    claims = await asyncio.gather(*[stage.store.claim("w2", bell.key, bell.fence) for bell in bells])
    assert {claim.losses for claim in claims} == {1}
    assert all(claim.started_before for claim in claims)
    await stage.store.purge()


async def test_who_is_not_to_blame_costs_its_jobs_nothing(stage: Stage) -> None:
    await stage.running("k", crashes_max=0)
    await stage.expire("w1")
    await stage.slots("w2")
    assert await stage.store.reap("w1", blame=False) == Reaped(0, moved=1)
    info = await stage.store.read("k")
    assert info is not None
    assert info.losses == 0


async def test_a_job_that_was_only_queued_is_never_blamed(stage: Stage) -> None:
    await stage.queued("k", crashes_max=0)
    await stage.expire("w1")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, parked=1)


async def test_a_job_whose_workers_die_too_often_is_a_dead_letter(stage: Stage) -> None:
    fence = await stage.running("k", crashes_max=1)
    await stage.store.crashed("w1", "k", fence, "boom")
    await stage.expire("w1")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, dead=1)
    (letter,) = await stage.letters()
    assert (letter["key"], letter["crashes"], letter["losses"]) == (b"k", b"1", b"1")
    assert await stage.store.read("k") is None


async def test_crashes_count_on_top_of_the_workers_that_died(stage: Stage) -> None:
    await stage.running("k", crashes_max=1)
    await stage.expire("w1")
    await stage.slots("w2")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, moved=1)
    (bell,) = await stage.bells("w2")
    await stage.store.claim("w2", "k", bell.fence)
    assert (await stage.store.crashed("w2", "k", bell.fence, "boom")).answer is CrashAnswer.DEAD


async def test_a_job_that_dies_with_its_worker_before_it_was_ready_tells_its_dispatcher(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1", crashes_max=0)
    await stage.store.claim("w1", "k", fence, explicit=True)
    await stage.expire("w1")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, dead=1)
    assert await stage.replies("n1") == [[Ring("failed", "k", "d-k", error="its workers died")]]


async def test_a_stopping_job_of_the_dead_is_gone_and_who_asked_hears_it(stage: Stage) -> None:
    await stage.running("k")
    await stage.store.stop("k", "n1")
    await stage.expire("w1")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, dropped=1)
    assert await stage.replies("n1") == [[Ring("stopped", "k")]]
    assert await stage.letters() == []


async def test_a_worker_without_any_lease_is_reaped_too(stage: Stage) -> None:
    await stage.running("k")
    await stage.redis.link.call("ZREM", stage.keys.leases, "w1")
    await stage.slots("w2")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, moved=1)


async def test_a_dead_worker_is_buried_after_its_jobs_and_tasks_and_its_notifications_follow(
    redis: Redis, unique: str
) -> None:
    stage = Stage(redis, f"bury-{unique}", step_max=10)
    await stage.worker("w1")
    await stage.worker("w2")
    await stage.slots("w1")
    for key in ("a", "b"):
        await stage.running(key)
    for number in range(20):
        await stage.store.notify("ab"[number % 2], b"%d" % number)
    assert await stage.store.bury_worker("w1") is BuryAnswer.LIVE
    await stage.expire("w1")
    assert await stage.store.bury_worker("w1") is BuryAnswer.OWNS
    await stage.assign("a", "w2")
    assert await stage.store.reap("w1", blame=True) == Reaped(0, moved=1, parked=1)
    await redis.link.call("SADD", stage.keys.held("w1"), "task")
    assert await stage.store.bury_worker("w1") is BuryAnswer.OWNS
    await redis.link.call("SREM", stage.keys.held("w1"), "task")
    answers = [await stage.store.bury_worker("w1") for _ in range(3)]
    assert answers == [BuryAnswer.MORE, BuryAnswer.MORE, BuryAnswer.DONE]
    assert [bell.payload for bell in await stage.bells("w2")] == [b"", *[b"%d" % n for n in range(0, 20, 2)]]
    assert await redis.link.call("LRANGE", stage.keys.notes("b"), 0, -1) == [b"%d" % n for n in range(1, 20, 2)]
    assert not [name for name in await stage.names() if "w1" in name]
    assert await redis.link.call("ZSCORE", stage.keys.leases, "w1") is None
    assert await stage.store.bury_worker("w1") is BuryAnswer.DONE
    await stage.store.purge()


async def test_parked_jobs_are_adopted_by_live_owners_only(stage: Stage) -> None:
    await stage.expire("w1")
    for key in ("a", "b", "c"):
        await stage.queued(key)
    await stage.assign("a", "w2")
    assert await stage.store.adopt() == Adopted(1, 2)
    assert [bell.key for bell in await stage.bells("w2")] == ["a"]
    await stage.slots("w2")
    assert await stage.store.adopt() == Adopted(2, 0)
    assert await stage.store.adopt() == Adopted(0, 0)


async def test_a_dead_letter_becomes_a_job_again(stage: Stage) -> None:
    fence = await stage.running("k", payload=b"pay", crashes_max=0)
    await stage.store.checkpoint("w1", "k", fence, b"state")
    await stage.store.crashed("w1", "k", fence, "boom")
    (entry,) = await stage.redis.link.call("XRANGE", stage.keys.dead, "-", "+")
    letter_id = entry[0].decode()
    second = await stage.queued("k")
    assert await stage.store.redrive([letter_id, "1-1"]) == [RedriveAnswer.EXISTS, RedriveAnswer.NOT_FOUND]
    await stage.store.withdraw("k", "d-k")
    assert await stage.store.redrive([letter_id]) == [RedriveAnswer.OK]
    assert await stage.store.redrive([letter_id]) == [RedriveAnswer.NOT_FOUND]
    info = await stage.store.read("k")
    assert info is not None
    assert info.fence > second
    assert (info.state, info.crashes, info.kind) == (JobState.QUEUED, 0, "watch")
    claim = await stage.store.claim("w1", "k", info.fence)
    assert (claim.payload, claim.checkpoint, claim.crashes_max) == (b"pay", b"state", 0)
    assert await stage.letters() == []


async def test_the_letter_of_a_task_is_no_job_and_stays(stage: Stage) -> None:
    letter_id = await stage.redis.link.call("XADD", stage.keys.dead, "*", "kind", "task", "id", "t1")
    assert await stage.store.redrive([letter_id.decode()]) == [RedriveAnswer.NO_JOB]
    await stage.store.shutdown_begin("n1")
    assert len(await stage.letters()) == 1


async def test_a_shutdown_tells_everybody_and_drops_what_waits_then_what_runs(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"down-{unique}", step_max=10, shutdown_ttl_s=100)
    for node in ("n1", "n2"):
        await stage.node(node)
        await redis.link.call("ZADD", stage.keys.nodes, 1, node)
    await stage.worker("w1")
    await stage.slots("w1")
    assert await stage.store.shutdown_step() is None
    for number in range(15):
        await stage.queued(f"q{number}", node="n1")
    for number in range(15):
        await stage.running(f"r{number}")
    first, left_s = await stage.store.shutdown_begin("n2")
    assert first == "n2"
    assert 99 < left_s <= 100
    assert await stage.store.shutdown_begin("n1") == ("n2", pytest.approx(left_s, abs=1))
    assert (await stage.bells("w1"))[-1].type == "shutdown"
    assert (await stage.replies("n2"))[0] == [Ring("shutdown")]
    steps = [await stage.store.shutdown_step() for _ in range(3)]
    assert [(step.dropped, step.queued, step.owned) for step in steps if step] == [(10, 5, 20), (5, 0, 15), (0, 0, 15)]
    assert sum(ring.type == "gone" for entry in await stage.replies("n1") for ring in entry) == 15
    await redis.link.call("HSET", stage.keys.meta, "shutdown_until", 1)
    steps = [await stage.store.shutdown_step() for _ in range(2)]
    assert [(step.dropped, step.owned, step.done, step.left_s) for step in steps if step] == [
        (10, 5, False, 0), (5, 0, True, 0),
    ]  # fmt: skip
    await stage.store.purge()
    assert await stage.names() == []


async def test_a_purge_touches_no_other_pool(redis: Redis, unique: str) -> None:
    mine, other = Stage(redis, f"p-{unique}"), Stage(redis, f"p-{unique}x")
    for stage in (mine, other):
        await stage.worker("w1")
        await stage.slots("w1")
        await stage.queued("k")
    assert await mine.store.purge() > 0
    assert await mine.names() == []
    assert await other.store.read("k") is not None
    await other.store.purge()


async def test_a_namespace_with_pattern_characters_is_purged_literally(valkey_url: str, unique: str) -> None:
    redis = Redis.from_url(valkey_url, namespace=f"{unique}[a*]?")
    await redis.connect()
    await redis.link.call("SET", f"{unique}abpool:{{p}}:x", 1)
    stage = Stage(redis, "p")
    await stage.worker("w1")
    await stage.slots("w1")
    await stage.queued("k")
    assert await stage.store.purge() >= 4
    assert await stage.store.read("k") is None
    assert await redis.link.call("DEL", f"{unique}abpool:{{p}}:x") == 1
    await redis.aclose()


def test_every_key_of_a_pool_has_its_hash_tag() -> None:
    keys = PoolKeys("orders", namespace="stage:")
    attributes = [getattr(keys, name) for name in PoolKeys.__slots__ if name not in ("name", "prefix")]
    made = [keys.job("a{b}c"), keys.owned("w"), keys.held("w"), keys.inbox("w"), keys.replies("n"), keys.notes("k")]
    for key in [*attributes, *made, keys.plan("s"), keys.task("t"), keys.ready("q")]:
        # What is hashed on a Cluster is what stands between the first brace and the next closing one.
        assert key.startswith("stage:pool:{orders}:")
    assert len({*attributes, *made}) == len(attributes) + len(made)
