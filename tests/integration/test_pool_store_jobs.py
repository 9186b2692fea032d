"""Each answer of each script of a pool's jobs, where a model of random walks would seldom come by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flotta.errors import (
    AmbiguousOutcome,
    Fenced,
    InvalidName,
    JobExists,
    LinkUnavailable,
    NotRunning,
    NoWorkers,
    PayloadTooLarge,
    PoolShutdown,
    QueueFull,
)
from flotta.pool.jobs import store as store_module
from flotta.pool.jobs.records import Release
from flotta.pool.jobs.states import Answer, CrashAnswer, JobState, ReleaseAnswer, StopAnswer, WithdrawAnswer
from flotta.pool.jobs.store import JobStore
from flotta.pool.keys import KEY_BYTES_MAX, slot_of
from flotta.pool.options import PoolOptions
from flotta.pool.wire import Bell, Ring, parse_bell, parse_reply
from flotta.redis import Link, Redis
from flotta.testing import FaultProxy
from pool_stage import Stage


@pytest.fixture
async def stage(redis: Redis, unique: str) -> AsyncIterator[Stage]:
    stage = Stage(redis, f"jobs-{unique}")
    await stage.node("n1")
    await stage.worker("w1")
    await stage.slots("w1")
    yield stage
    await stage.store.purge()


async def test_a_dispatch_rings_the_owner_of_the_slot_and_makes_a_record(stage: Stage) -> None:
    store = stage.store
    accepted = await store.dispatch("k", "watch", b"\x00pay", node="n1", did="d1", crashes_max=5)
    assert accepted.owner == "w1"
    assert await stage.bells("w1") == [Bell("start", "k", accepted.fence, "watch")]
    info = await store.read("k")
    assert info is not None
    assert (info.state, info.owner, info.fence, info.kind) == (JobState.QUEUED, "w1", accepted.fence, "watch")
    assert (info.slot, info.node, info.crashes_max, info.started_ms) == (slot_of("k"), "n1", 5, None)
    assert await store.payload("k") == b"\x00pay"
    assert (await store.counts()).queued == 1


async def test_a_repeated_dispatch_answers_like_the_first_and_another_one_is_refused(stage: Stage) -> None:
    first = await stage.store.dispatch("k", "watch", b"", did="d1", crashes_max=5)
    assert await stage.store.dispatch("k", "watch", b"", did="d1", crashes_max=5) == first
    with pytest.raises(JobExists) as refused:
        await stage.store.dispatch("k", "watch", b"", did="d2", crashes_max=5)
    assert (refused.value.pool, refused.value.key) == (stage.store.name, "k")
    assert len(await stage.bells("w1")) == 1


async def test_a_dispatch_whose_answer_is_lost_is_repeated_without_a_second_job(
    valkey_url: str, unique: str, redis: Redis
) -> None:
    stage = Stage(redis, f"lost-{unique}")
    await stage.worker("w1")
    await stage.slots("w1")
    async with FaultProxy(valkey_url) as proxy:
        client = Redis.from_url(proxy.url)
        await client.connect()
        store = JobStore(client, stage.store.name)
        await store.dispatch("warm", "watch", b"", did="d0", crashes_max=1)
        proxy.cut_after(1, "down")
        accepted = await store.dispatch("k", "watch", b"", did="d1", crashes_max=1)
        await client.aclose()
    info = await stage.store.read("k")
    assert info is not None
    assert info.fence == accepted.fence
    assert [bell.key for bell in await stage.bells("w1")] == ["warm", "k"]
    await stage.store.purge()


async def test_a_notification_whose_answer_is_lost_is_not_repeated(valkey_url: str, unique: str, redis: Redis) -> None:
    stage = Stage(redis, f"lost-{unique}")
    await stage.worker("w1")
    await stage.slots("w1")
    async with FaultProxy(valkey_url) as proxy:
        client = Redis.from_url(proxy.url)
        await client.connect()
        store = JobStore(client, stage.store.name)
        await store.dispatch("k", "watch", b"", did="d0", crashes_max=1)
        await store.notify("k", b"1")
        proxy.cut_after(1, "down")
        with pytest.raises(AmbiguousOutcome):
            await store.notify("k", b"2")
        await client.aclose()
    assert [bell.payload for bell in await stage.bells("w1") if bell.type == "note"] == [b"1", b"2"]
    await stage.store.purge()


async def test_without_a_worker_nothing_is_accepted(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"none-{unique}")
    with pytest.raises(NoWorkers):
        await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)
    await stage.worker("w1", live=False)
    await stage.slots("w1")
    with pytest.raises(NoWorkers):
        await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)
    assert await stage.store.read("k") is None
    await stage.store.purge()


async def test_a_job_of_a_slot_without_a_live_owner_is_parked_while_others_live(stage: Stage) -> None:
    await stage.worker("w2")
    await stage.expire("w1")
    accepted = await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)
    assert accepted.owner == ""
    assert (await stage.store.counts()).parked == 1
    assert [job.key async for job in stage.store.jobs("")] == ["k"]


async def test_a_leaving_worker_gets_nothing_new(stage: Stage) -> None:
    await stage.leave("w1")
    with pytest.raises(NoWorkers):
        await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)
    await stage.worker("w2")
    assert (await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)).owner == ""


async def test_the_queue_refuses_at_its_limit_and_keeps_what_it_has(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"full-{unique}", queue_max_per_worker=2)
    await stage.worker("w1")
    await stage.slots("w1")
    calls = [stage.store.dispatch(f"k{i}", "watch", b"", did=f"d{i}", crashes_max=1) for i in range(5)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Dispatched"] * 2 + ["QueueFull"] * 3
    refused = answers[2]
    assert isinstance(refused, QueueFull)
    assert (refused.queued, refused.limit) == (2, 2)
    bells = await stage.bells("w1")
    assert [bell.key for bell in bells] == ["k0", "k1"]
    await stage.store.claim("w1", "k0", bells[0].fence)
    await stage.store.dispatch("k9", "watch", b"", did="d9", crashes_max=1)  # a claimed job does not wait any more
    await stage.store.purge()


async def test_what_is_too_large_or_badly_named_is_refused_before_it_travels(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"large-{unique}", payload_bytes_max=10)
    with pytest.raises(PayloadTooLarge) as refused:
        await stage.store.dispatch("k", "watch", b"x" * 11, did="d", crashes_max=1)
    assert (refused.value.size, refused.value.size_max, refused.value.option) == (11, 10, "payload_bytes_max")
    with pytest.raises(PayloadTooLarge):
        await stage.store.notify("k", b"x" * 11)
    with pytest.raises(PayloadTooLarge):
        await stage.store.checkpoint("w", "k", 1, b"x" * 11)
    for key in ("", "é" * (KEY_BYTES_MAX // 2) + "x", "\ud800"):
        with pytest.raises(InvalidName):
            await stage.store.dispatch(key, "watch", b"", did="d", crashes_max=1)
    for name in ("", "a:b", "a{b}", "x" * 101, "a b"):
        with pytest.raises(InvalidName):
            JobStore(redis, name)


async def test_dispatches_of_one_turn_share_a_script_for_each_node_and_ring_each_worker_once(stage: Stage) -> None:
    await stage.worker("w2")
    await stage.node("n2")
    keys = [f"k{i}" for i in range(40)]
    for key in keys[::2]:
        await stage.assign(key, "w2")
    commands = stage.redis.link.stats.commands
    calls = [stage.store.dispatch(k, "watch", b"", node="n1", did=k, crashes_max=1) for k in keys]
    accepted = await asyncio.gather(*calls)
    assert stage.redis.link.stats.commands - commands <= 3  # one script, and its loading
    assert [a.fence for a in accepted] == list(range(accepted[0].fence, accepted[0].fence + 40))
    assert await stage.entries("w1") == await stage.entries("w2") == 1
    commands = stage.redis.link.stats.commands
    bells = [("w1", bell) for bell in await stage.bells("w1")] + [("w2", bell) for bell in await stage.bells("w2")]
    await asyncio.gather(*[stage.store.claim(worker, bell.key, bell.fence) for worker, bell in bells])
    assert stage.redis.link.stats.commands - commands <= 6
    replies = await stage.replies("n1")
    assert len(replies) == 2
    assert sorted(ring.key for entry in replies for ring in entry) == sorted(keys)
    assert {ring.did for entry in replies for ring in entry} == set(keys)


async def test_a_batch_with_two_nodes_answers_each_call_its_own(stage: Stage) -> None:
    calls = [
        stage.store.dispatch(f"k{i}", "watch", b"", node=f"n{1 + i % 2}", did=f"d{i}", crashes_max=1) for i in range(6)
    ]
    await asyncio.gather(*calls)
    infos = [await stage.store.read(f"k{i}") for i in range(6)]
    assert [info.node for info in infos if info] == ["n1", "n2"] * 3


async def test_a_cancelled_dispatch_changes_nothing_for_the_others_of_its_batch(stage: Stage) -> None:
    tasks = [
        asyncio.ensure_future(stage.store.dispatch(f"k{i}", "watch", b"", did=f"d{i}", crashes_max=1)) for i in range(3)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answer.owner for answer in (answers[0], answers[2])] == ["w1", "w1"]  # type: ignore[union-attr]


async def test_large_payloads_are_claimed_in_several_replies(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"big-{unique}")
    await stage.worker("w1")
    await stage.slots("w1")
    payloads = [bytes([i]) * 700_000 for i in range(5)]
    for i, payload in enumerate(payloads):
        await stage.store.dispatch(f"k{i}", "watch", payload, did=f"d{i}", crashes_max=1)
    calls = [stage.store.claim("w1", bell.key, bell.fence) for bell in await stage.bells("w1")]
    commands = redis.link.stats.commands
    claims = await asyncio.gather(*calls)
    assert [claim.payload for claim in claims] == payloads
    assert redis.link.stats.commands - commands >= 3
    await stage.store.purge()


async def test_a_claim_starts_a_job_once_and_tells_its_dispatcher_once(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1", payload=b"pay")
    claim = await stage.store.claim("w1", "k", fence)
    assert (claim.answer, claim.kind, claim.payload, claim.checkpoint) == (Answer.OK, "watch", b"pay", None)
    assert not claim.started_before
    assert (await stage.store.claim("w1", "k", fence)).answer is Answer.OK
    assert await stage.replies("n1") == [[Ring("started", "k", "d-k", fence, "w1")]]
    assert (await stage.store.counts()).queued == 0


async def test_a_claim_of_a_stranger_or_too_late_does_not_start_it(stage: Stage) -> None:
    await stage.worker("w2")
    fence = await stage.queued("k")
    assert (await stage.store.claim("w2", "k", fence)).answer is Answer.FENCED
    assert (await stage.store.claim("w1", "k", fence + 1)).answer is Answer.FENCED
    assert (await stage.store.claim("w1", "other", fence)).answer is Answer.GONE
    await stage.expire("w1")
    assert (await stage.store.claim("w1", "k", fence)).answer is Answer.FENCED
    info = await stage.store.read("k")
    assert info is not None
    assert info.state is JobState.QUEUED


async def test_an_explicit_job_is_started_when_it_says_so(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1")
    await stage.store.claim("w1", "k", fence, explicit=True)
    assert await stage.replies("n1") == []
    assert [await stage.store.ready("w1", "k", fence) for _ in range(2)] == [Answer.OK, Answer.OK]
    assert await stage.replies("n1") == [[Ring("started", "k", "d-k", fence, "w1")]]
    assert await stage.store.ready("w1", "k", fence + 1) is Answer.FENCED
    assert await stage.store.ready("w1", "none", fence) is Answer.GONE


async def test_an_explicit_job_that_fails_is_gone_and_its_dispatcher_hears_why(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1")
    await stage.store.claim("w1", "k", fence, explicit=True)
    assert await stage.store.start_failed("w1", "k", fence, "no ☂") is Answer.OK
    assert await stage.replies("n1") == [[Ring("failed", "k", "d-k", error="no ☂")]]
    assert await stage.store.read("k") is None
    assert await stage.store.start_failed("w1", "k", fence, "again") is Answer.GONE
    assert len(await stage.replies("n1")) == 1


async def test_a_job_that_was_started_before_cannot_fail_to_start(stage: Stage) -> None:
    fence = await stage.running("k")
    assert await stage.store.start_failed("w1", "k", fence, "no") is Answer.STARTED_BEFORE
    assert await stage.store.read("k") is not None


async def test_a_finished_job_leaves_nothing_behind(stage: Stage) -> None:
    fence = await stage.running("k", scheduler="plan")
    await stage.store.notify("k", b"note")
    assert await stage.store.finished("w1", "k", fence - 1) is Answer.FENCED
    assert await stage.store.finished("w1", "k", fence) is Answer.OK
    assert await stage.store.finished("w1", "k", fence) is Answer.GONE
    assert await stage.names() == ["inbox:w1", "leases", "meta", "replies:n1", "slots"]


async def test_crashes_raise_the_fence_and_the_last_one_makes_a_dead_letter(stage: Stage) -> None:
    fence = await stage.running("k", crashes_max=1, payload=b"pay", node="n1")
    await stage.store.checkpoint("w1", "k", fence, b"state")
    first = await stage.store.crashed("w1", "k", fence, "boom")
    assert (first.answer, first.crashes) == (CrashAnswer.BACKOFF, 1)
    assert first.fence > fence
    assert await stage.store.crashed("w1", "k", fence, "boom") == first  # its answer was lost
    with pytest.raises(Fenced):
        await stage.store.checkpoint("w1", "k", fence, b"late")
    assert await stage.store.restarted("w1", "k", first.fence) is Answer.OK
    assert (await stage.store.crashed("w1", "k", fence, "boom")).answer is CrashAnswer.FENCED
    info = await stage.store.read("k")
    assert info is not None
    assert (info.state, info.crashes, info.error) == (JobState.RUNNING, 1, "boom")
    last = await stage.store.crashed("w1", "k", first.fence, "x" * 10_000)
    assert (last.answer, last.crashes, last.fence) == (CrashAnswer.DEAD, 2, 0)
    (letter,) = await stage.letters()
    assert {name: letter[name] for name in ("kind", "key", "name", "payload", "checkpoint", "crashes")} == {
        "kind": b"job", "key": b"k", "name": b"watch", "payload": b"pay", "checkpoint": b"state", "crashes": b"2",
    }  # fmt: skip
    assert letter["error"] == b"x" * 4_000
    assert (await stage.store.crashed("w1", "k", first.fence, "boom")).answer is CrashAnswer.GONE
    assert (await stage.store.counts()).dead == 1


async def test_crashes_are_forgotten_after_a_healthy_run(stage: Stage) -> None:
    fence = await stage.running("k", crashes_max=1)
    fence = (await stage.store.crashed("w1", "k", fence, "boom")).fence
    assert await stage.store.reset_crashes("w1", "k", fence) is Answer.OK
    assert (await stage.store.crashed("w1", "k", fence, "boom")).answer is CrashAnswer.BACKOFF
    assert await stage.store.reset_crashes("w1", "k", fence) is Answer.FENCED


async def test_a_stop_before_the_claim_ends_the_job_at_once_and_its_dispatcher_hears_it(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1")
    assert await stage.store.stop("k", "n2") is StopAnswer.GONE
    assert await stage.replies("n1") == [[Ring("gone", "k", "d-k")]]
    assert (await stage.store.claim("w1", "k", fence)).answer is Answer.GONE
    assert await stage.store.stop("k") is StopAnswer.NOT_RUNNING


async def test_a_stop_is_kept_until_the_job_ends_and_everybody_who_asked_hears_it(stage: Stage) -> None:
    await stage.node("n2")
    fence = await stage.running("k")
    for node in ("n1", "n2", "n1", ""):
        assert await stage.store.stop("k", node) is StopAnswer.STOPPING
    assert (await stage.bells("w1"))[-1] == Bell("stop", "k", fence)
    with pytest.raises(NotRunning):
        await stage.store.notify("k", b"")
    await stage.store.checkpoint("w1", "k", fence, b"last words")
    assert (await stage.store.claim("w1", "k", fence)).answer is Answer.STOPPING
    assert await stage.store.ready("w1", "k", fence) is Answer.STOPPING
    assert await stage.store.restarted("w1", "k", fence) is Answer.STOPPING
    assert await stage.store.finished("w1", "k", fence) is Answer.OK
    assert await stage.replies("n1") == await stage.replies("n2") == [[Ring("stopped", "k")]]


async def test_a_stopping_job_that_crashes_or_is_handed_over_is_gone(stage: Stage) -> None:
    fences = {key: await stage.running(key) for key in ("a", "b", "c")}
    for key in fences:
        await stage.store.stop(key, "n1")
    assert (await stage.store.crashed("w1", "a", fences["a"], "boom")).answer is CrashAnswer.STOPPED
    assert await stage.store.release("w1", [Release("b", fences["b"])]) == [ReleaseAnswer.STOPPED]
    assert await stage.store.decline("w1", "c", fences["c"]) is Answer.STOPPING
    assert [entry[0].key for entry in await stage.replies("n1")] == ["a", "b", "c"]
    assert await stage.letters() == []


async def test_a_stop_during_the_start_tells_the_dispatcher_that_it_is_gone(stage: Stage) -> None:
    fence = await stage.queued("k", node="n1")
    await stage.store.claim("w1", "k", fence, explicit=True)
    await stage.store.stop("k")
    assert await stage.store.finished("w1", "k", fence) is Answer.OK
    assert await stage.replies("n1") == [[Ring("gone", "k", "d-k")]]


async def test_notifications_stand_behind_the_start_in_their_order(stage: Stage) -> None:
    await stage.queued("k")
    for text in (b"1", b"2", b"\xff"):
        await stage.store.notify("k", text)
    assert [(bell.type, bell.payload) for bell in await stage.bells("w1")] == [
        ("start", b""), ("note", b"1"), ("note", b"2"), ("note", b"\xff"),
    ]  # fmt: skip
    with pytest.raises(NotRunning):
        await stage.store.notify("none", b"")


async def test_a_full_inbox_refuses_notifications_and_takes_doorbells(redis: Redis, unique: str) -> None:
    stage = Stage(redis, f"inbox-{unique}", inbox_max=3)
    await stage.worker("w1")
    await stage.slots("w1")
    await stage.running("k")
    await stage.store.notify("k", b"1")
    await stage.store.notify("k", b"2")
    with pytest.raises(QueueFull) as refused:
        await stage.store.notify("k", b"3")
    assert (refused.value.queued, refused.value.limit, refused.value.what) == (3, 3, "notifications")
    await stage.queued("more")
    assert (await stage.bells("w1"))[-1].key == "more"
    await stage.store.purge()


async def test_a_parked_job_keeps_its_notifications_up_to_a_limit_and_takes_them_along(stage: Stage) -> None:
    await stage.worker("w2")
    await stage.expire("w1")
    await stage.queued("k")
    for number in range(1_000):
        await stage.store.notify("k", b"%d" % number)
    with pytest.raises(QueueFull) as refused:
        await stage.store.notify("k", b"too many")
    assert refused.value.limit == 1_000
    await stage.assign("k", "w2")
    assert (await stage.store.adopt()).adopted == 1
    bells = await stage.bells("w2")
    assert bells[0].type == "start"
    assert [bell.payload for bell in bells[1:]] == [b"%d" % number for number in range(1_000)]
    assert "notes:k" not in await stage.names()


async def test_a_notification_for_an_owner_without_an_inbox_waits_for_the_next_owner(stage: Stage) -> None:
    fence = await stage.running("k")
    await stage.redis.link.call("DEL", stage.keys.inbox("w1"))
    await stage.store.notify("k", b"kept")
    await stage.worker("w2")
    await stage.assign("k", "w2")
    assert await stage.store.release("w1", [Release("k", fence)]) == [ReleaseAnswer.OK]
    assert [bell.payload for bell in await stage.bells("w2")] == [b"", b"kept"]


async def test_a_dispatch_that_took_too_long_is_taken_back(stage: Stage) -> None:
    await stage.queued("k")
    assert (await stage.store.withdraw("k", "other")).answer is WithdrawAnswer.GONE
    assert (await stage.store.withdraw("k", "d-k")).answer is WithdrawAnswer.WITHDRAWN
    assert (await stage.store.withdraw("k", "d-k")).answer is WithdrawAnswer.GONE
    assert await stage.store.read("k") is None
    assert await stage.replies("n1") == []


async def test_a_dispatch_that_has_started_after_all_stays(stage: Stage) -> None:
    fence = await stage.running("k")
    withdrawal = await stage.store.withdraw("k", "d-k")
    assert (withdrawal.answer, withdrawal.fence, withdrawal.worker) == (WithdrawAnswer.STARTED, fence, "w1")


async def test_a_dispatch_that_is_starting_is_told_to_stop(stage: Stage) -> None:
    fence = await stage.queued("k")
    await stage.store.claim("w1", "k", fence, explicit=True)
    assert [(await stage.store.withdraw("k", "d-k")).answer for _ in range(2)] == [WithdrawAnswer.STOPPING] * 2
    assert (await stage.bells("w1"))[-1] == Bell("stop", "k", fence)
    assert await stage.store.ready("w1", "k", fence) is Answer.STOPPING


async def test_a_job_that_is_handed_over_keeps_its_state_and_takes_unused_notifications_along(stage: Stage) -> None:
    await stage.worker("w2")
    fence = await stage.running("k", payload=b"pay")
    await stage.store.checkpoint("w1", "k", fence, b"state")
    for text in (b"used", b"1", b"2"):
        await stage.store.notify("k", text)
    ids = [entry_id for entry_id, bell in await stage.notes("w1") if bell.payload != b"used"]
    assert await stage.store.release("w1", [Release("k", fence, ids)]) == [ReleaseAnswer.KEEP]
    await stage.assign("k", "w2")
    assert await stage.store.release("w1", [Release("k", fence, ids)]) == [ReleaseAnswer.OK]
    assert await stage.store.release("w1", [Release("k", fence, ids)]) == [ReleaseAnswer.FENCED]
    start, *notes = await stage.bells("w2")
    assert start.fence > fence
    assert [note.payload for note in notes] == [b"1", b"2"]
    assert [bell.payload for _, bell in await stage.notes("w1")] == [b"used"]
    claim = await stage.store.claim("w2", "k", start.fence)
    assert (claim.checkpoint, claim.payload, claim.started_before) == (b"state", b"pay", True)
    assert await stage.replies("n1") == []


async def test_a_leaving_worker_parks_what_the_table_still_gives_it(stage: Stage) -> None:
    fence = await stage.running("k")
    await stage.leave("w1")
    await stage.store.notify("k", b"note")
    ids = [entry_id for entry_id, _ in await stage.notes("w1")]
    assert await stage.store.release("w1", [Release("k", fence, ids)]) == [ReleaseAnswer.OK]
    assert (await stage.store.counts()).parked == 1
    await stage.worker("w2")
    await stage.slots("w2")
    adopted = await stage.store.adopt()
    assert (adopted.adopted, adopted.parked) == (1, 0)
    assert [bell.type for bell in await stage.bells("w2")] == ["start", "note"]


async def test_a_declined_job_goes_to_the_worker_that_is_named_if_it_lives(stage: Stage) -> None:
    await stage.worker("w2")
    await stage.worker("gone", live=False)
    fence = await stage.queued("k")
    assert await stage.store.decline("w1", "k", fence, "w2") is Answer.OK
    bell = (await stage.bells("w2"))[0]
    assert (await stage.store.claim("w1", "k", fence)).answer is Answer.FENCED
    assert await stage.store.decline("w2", "k", bell.fence, "gone") is Answer.OK
    assert (await stage.store.counts()).parked == 1
    assert await stage.store.decline("w2", "k", bell.fence, "w1") is Answer.FENCED
    assert await stage.store.decline("w2", "none", 1) is Answer.GONE


async def test_after_redis_lost_its_data_tokens_go_on_growing(stage: Stage) -> None:
    before = await stage.queued("k")
    await stage.store.purge()
    await stage.worker("w1")
    await stage.slots("w1")
    assert await stage.queued("k") > before


async def test_tokens_grow_also_where_redis_comes_back_with_the_data_of_a_moment_ago(stage: Stage) -> None:
    """As after a failover that lost the last writes: what was given out since then is not given out again."""
    await stage.queued("first")
    old = await stage.redis.link.call("HGET", stage.keys.meta, "fence")
    given = max([await stage.queued(f"k{n}") for n in range(20)])
    await stage.redis.link.call("HSET", stage.keys.meta, "fence", old)
    assert await stage.queued("later") > given


async def test_a_shut_down_pool_accepts_nothing(stage: Stage) -> None:
    await stage.queued("k")
    await stage.store.shutdown_begin("n1")
    with pytest.raises(PoolShutdown):
        await stage.store.dispatch("other", "watch", b"", did="d", crashes_max=1)
    with pytest.raises(JobExists):
        await stage.store.dispatch("k", "watch", b"", did="d", crashes_max=1)


async def test_the_pages_of_a_worker_show_each_job_once(stage: Stage) -> None:
    keys = {f"k{i}" for i in range(350)}
    calls = [stage.store.dispatch(key, "watch", b"x" * 100, did=key, crashes_max=1) for key in keys]
    await asyncio.gather(*calls)
    cursor, page = await stage.store.page("w1")
    assert cursor != "0"
    assert len(page) < 350
    listed = [job.key async for job in stage.store.jobs("w1")]
    assert len(listed) == 350
    assert set(listed) == keys


async def test_steps_cost_the_same_number_of_calls_however_many_jobs_there_are(own_valkey: Any) -> None:
    redis = Redis.from_url(own_valkey.url)
    await redis.connect()
    stage = Stage(redis, "flat", queue_max_per_worker=10_000)
    await stage.worker("w1")
    await stage.slots("w1")

    async def one_job(key: str) -> int:
        before = await _calls(redis.link)
        fence = await stage.running(key)
        await stage.store.checkpoint("w1", key, fence, b"state")
        await stage.store.stop(key)
        await stage.store.finished("w1", key, fence)
        return await _calls(redis.link) - before

    await one_job("first")  # loads the scripts
    few = await one_job("few")
    calls = [stage.store.dispatch(f"k{i}", "watch", b"", did=f"d{i}", crashes_max=1) for i in range(5_000)]
    await asyncio.gather(*calls)
    assert await one_job("many") == few
    await redis.aclose()


async def _calls(link: Link) -> int:
    """Commands that the server has run, those inside scripts included."""
    info = (await link.call("INFO", "commandstats")).decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in info.splitlines() if line.startswith("cmdstat_"))


def test_options_of_a_store_are_those_of_its_pool(redis: Redis) -> None:
    options = PoolOptions(ack_grace_s=1)
    assert JobStore(redis, "p", options=options).options is options


def test_entries_of_types_that_a_newer_version_may_add_say_nothing() -> None:
    assert parse_bell([b"t", b"future", b"k", b"x"]) == []
    assert parse_reply([b"t", b"future"]) == []


async def test_a_batch_of_several_nodes_that_fails_half_way_says_of_each_job_what_is_true(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dispatches of one turn of the loop for two nodes are two scripts: the second cannot take the first one back."""
    await stage.worker("w1")
    await stage.slots("w1")
    sent = 0

    async def fail_second(link: Any, **call: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent == 2:
            raise LinkUnavailable("server", "refused")
        return await dispatch(link, **call)

    dispatch = store_module._DISPATCH
    monkeypatch.setattr(store_module, "_DISPATCH", fail_second)
    calls = [
        stage.store.dispatch(f"k{number}", "watch", b"", node=node, did=f"d{number}", crashes_max=5)
        for number, node in enumerate(["n1", "n1", "", "n1"])
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(outcome, LinkUnavailable) for outcome in outcomes] == [False, False, True, False]
    assert [await stage.store.read(f"k{number}") is not None for number in range(4)] == [True, True, False, True]
