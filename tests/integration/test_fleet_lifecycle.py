"""A fleet on real servers: the order of start and stop, what a failing start leaves, deadlines, health."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from flotta.errors import (
    ConfigError,
    DatabaseUnavailable,
    LinkUnavailable,
    MigrationTimeout,
    NotStarted,
    StartTimeout,
    StateError,
    StopTimeout,
)
from flotta.fleet import Fleet, FleetState, registered, use_settings
from flotta.fleet._health import run_checks
from flotta.migrations import Migrations
from flotta.realtime import Server
from flotta.redis.embedded import EmbeddedRedis
from flotta.rmap import Map
from flotta.settings import Redactor, Settings
from flotta.streaming import Stream
from free_ports import free_port


@pytest.fixture
def settings(valkey_url: str, unique: str) -> Settings:
    return Settings(redis_url=valkey_url, namespace=f"{unique}:", drain_s=5, stop_s=8, start_timeout_s=10)


@pytest.fixture
def with_postgres(settings: Settings, database_url: str) -> Settings:
    return replace(settings, database_url=database_url, postgres_size_min=1)


class Trace:
    """Remembers the events that a structlog logger is given."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def _log(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    debug = info = warning = error = exception = critical = _log

    def bind(self, **_: Any) -> Trace:
        return self

    new = bind


async def test_parts_are_up_in_hooks_and_tasks_and_gone_after_the_stop(with_postgres: Settings) -> None:
    fleet = Fleet(with_postgres)
    flags = fleet.map("flags")
    events = fleet.stream("events")
    order: list[str] = []
    running = asyncio.Event()

    @fleet.on_start
    async def fill() -> None:
        await flags.set_and_wait("colour", "green")
        assert await fleet.postgres.fetch_one("SELECT 1") == (1,)
        order.append(f"on_start {fleet.state.value}")

    @fleet.background
    async def worker() -> None:
        order.append(f"task {fleet.state.value}")
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await events.add("bye", b"from the task")  # Redis is still there
            order.append(f"task ends {fleet.state.value}")

    @fleet.on_stop
    def last() -> None:
        order.append(f"on_stop {fleet.has_postgres} {fleet.redis.link.connected}")

    async with fleet:
        await running.wait()
        assert flags.get("colour") == "green"
        assert fleet.state is FleetState.STARTED
        assert Fleet.current() is fleet
    assert order == ["on_start starting", "task started", "task ends stopping", "on_stop True True"]
    assert fleet.state is FleetState.STOPPED
    assert Fleet.current() is not fleet
    with pytest.raises(NotStarted):
        _ = fleet.redis
    with pytest.raises(NotStarted):
        _ = fleet.postgres


async def test_closes_postgres_before_redis_and_opens_them_the_other_way_round(with_postgres: Settings) -> None:
    fleet = Fleet(with_postgres)
    await fleet.start()
    names = [step.name for step in fleet._steps._started]
    assert names[:2] == ["Redis", "PostgreSQL"]
    redis, pool = fleet.redis, fleet.postgres
    closed: list[str] = []
    for name, part in (("redis", redis), ("postgres", pool)):
        # The real closers run; this only writes down when.
        step = next(s for s in fleet._steps._started if s.name.lower().startswith(name))
        index = fleet._steps._started.index(step)

        async def noted(left_s: float, *, name: str = name, stop: Any = step.stop) -> None:
            assert redis.link.connected
            await stop(left_s)
            closed.append(name)

        fleet._steps._started[index] = replace(step, stop=noted)
        assert part is not None
    await fleet.stop()
    assert closed == ["postgres", "redis"]
    assert not redis.link.connected


async def test_stop_before_start_twice_and_at_once_is_fine(settings: Settings) -> None:
    fleet = Fleet(settings)
    await fleet.stop()
    await fleet.start()
    await fleet.start()
    await asyncio.gather(fleet.stop(), fleet.stop(), fleet.stop())
    await fleet.stop()
    assert fleet.state is FleetState.STOPPED


async def test_fleet_without_one_life_parts_starts_again(settings: Settings) -> None:
    fleet = Fleet(settings)
    for _ in range(2):
        async with fleet:
            assert await fleet.redis.ping()


async def test_second_life_of_parts_is_refused_with_the_reason(settings: Settings) -> None:
    fleet = Fleet(settings)
    fleet.map("flags")
    async with fleet:
        pass
    with pytest.raises(StateError, match="make a new Fleet"):
        await fleet.start()


async def test_failing_start_stops_what_had_started(settings: Settings) -> None:
    fleet = Fleet(settings)
    stopped: list[str] = []

    @fleet.on_stop
    def never_needed() -> None:
        stopped.append("on_stop")

    @fleet.on_start
    async def bad() -> None:
        stopped.append(f"connected {fleet.redis.link.connected}")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await fleet.start()
    assert any("on_start" in note for note in caught.value.__notes__)
    assert stopped == ["connected True", "on_stop"]
    assert fleet.state is FleetState.STOPPED
    assert fleet.loop is None
    with pytest.raises(NotStarted):
        _ = fleet.redis


async def test_cancelled_start_stops_what_had_started(settings: Settings) -> None:
    fleet = Fleet(settings)
    inside = asyncio.Event()

    @fleet.on_start
    async def slow() -> None:
        inside.set()
        await asyncio.Event().wait()

    start = asyncio.create_task(fleet.start())
    await inside.wait()
    redis = fleet.redis
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert fleet.state is FleetState.STOPPED
    assert not redis.link.connected


async def test_step_that_takes_too_long_ends_the_start_and_is_named(settings: Settings) -> None:
    fleet = Fleet(replace(settings, start_timeout_s=1.5))

    @fleet.on_start
    async def for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StartTimeout, match="for_ever"):
        await fleet.start()
    assert fleet.state is FleetState.STOPPED


async def test_start_waits_for_a_redis_that_comes_up_late(settings: Settings) -> None:
    log = Trace()
    port = free_port()
    fleet = Fleet(replace(settings, redis_url=f"redis://127.0.0.1:{port}/0"), logger=log)
    start = asyncio.create_task(fleet.start())
    while not any(event == "waiting for Redis" for event, _ in log.events):
        await asyncio.sleep(0.01)
        assert not start.done()
    with EmbeddedRedis(port=port):
        await start
        assert await fleet.redis.ping()
        await fleet.stop()


@pytest.mark.parametrize("pause", [0.5, 40], ids=["retries soon", "retries after the deadline"])
async def test_start_without_redis_says_why_and_may_be_tried_again(
    settings: Settings, own_valkey: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    own_valkey.kill()
    monkeypatch.setattr("flotta.redis.link.random.uniform", lambda _low, _high: pause)
    fleet = Fleet(replace(settings, redis_url=own_valkey.url, start_timeout_s=2.0))
    fleet.map("flags")
    with pytest.raises(LinkUnavailable):
        await fleet.start()
    await own_valkey.restart()
    async with fleet:
        assert await fleet.redis.ping()


async def test_what_trying_again_cannot_cure_ends_the_start_at_once(
    with_postgres: Settings, own_valkey: EmbeddedRedis
) -> None:
    patient = replace(with_postgres, start_timeout_s=60)
    async with Fleet(replace(patient, redis_url=own_valkey.url)) as fleet:
        await fleet.redis.config_set("requirepass", "right")
    for url in (own_valkey.url, own_valkey.url.replace("://", "://:wrong@")):
        with pytest.raises(LinkUnavailable):
            await asyncio.wait_for(Fleet(replace(patient, redis_url=url)).start(), 10)
    assert patient.database_url is not None
    nowhere = patient.database_url.rpartition("/")[0] + "/no_such_database"
    with pytest.raises(DatabaseUnavailable, match="no_such_database"):
        await asyncio.wait_for(Fleet(replace(patient, database_url=nowhere)).start(), 10)


async def test_missing_urls_name_the_variable(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        await Fleet(Settings()).start()
    async with Fleet(settings) as fleet:
        assert not fleet.has_postgres
        with pytest.raises(ConfigError, match="DATABASE_URL"):
            _ = fleet.postgres
    unmigrated = Fleet(settings)
    unmigrated.migrations("nowhere")
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        await unmigrated.start()


async def test_part_that_does_not_stop_is_abandoned_and_the_rest_stops(settings: Settings) -> None:
    fleet = Fleet(replace(settings, drain_s=0.1, stop_s=1.0))

    @fleet.on_stop
    async def for_ever() -> None:
        await asyncio.Event().wait()

    await fleet.start()
    redis = fleet.redis
    with pytest.raises(StopTimeout, match="for_ever"):
        await fleet.stop()
    assert not redis.link.connected
    assert fleet.state is FleetState.STOPPED


async def test_background_task_that_ignores_its_end_is_named_and_the_rest_stops(settings: Settings) -> None:
    fleet = Fleet(replace(settings, drain_s=0.2, stop_s=2.0))
    release = asyncio.Event()
    running = asyncio.Event()

    @fleet.background
    async def stubborn() -> None:
        running.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    await fleet.start()
    await running.wait()
    redis = fleet.redis
    with pytest.raises(StopTimeout, match="stubborn"):
        await fleet.stop()
    assert not redis.link.connected
    release.set()
    task = fleet.background_tasks[0].task
    assert task is not None
    await asyncio.wait([task])


async def test_crashed_background_task_is_logged_counted_and_runs_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta.fleet._background.BACKOFF_MIN_S", 0.01)
    log = Trace()
    fleet = Fleet(settings, logger=log)
    runs = 0
    done = asyncio.Event()

    @fleet.background(name="flaky")
    async def flaky() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise OSError("gone")
        done.set()

    async with fleet:
        await done.wait()
        task = fleet.background_tasks[0].task
        assert task is not None
        await task
    assert (runs, fleet.background_tasks[0].crashes) == (3, 2)
    crashed = [fields for event, fields in log.events if event == "background task crashed"]
    assert [fields["task"] for fields in crashed] == ["flaky", "flaky"]
    assert isinstance(crashed[0]["exc_info"], OSError)


async def test_background_task_that_fails_while_it_ends_is_not_started_again(settings: Settings) -> None:
    log = Trace()
    fleet = Fleet(settings, logger=log)
    running = asyncio.Event()
    runs = 0

    @fleet.background(name="untidy")
    async def untidy() -> None:
        nonlocal runs
        runs += 1
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("cannot say goodbye")

    async with fleet:
        await running.wait()
    assert runs == 1
    task = fleet.background_tasks[0].task
    assert task is not None
    assert task.done()
    assert [fields["task"] for event, fields in log.events if event.startswith("background task failed")] == ["untidy"]


async def test_cancellation_that_nobody_asked_for_is_a_crash(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta.fleet._background.BACKOFF_MIN_S", 0.01)
    fleet = Fleet(settings, logger=Trace())
    done = asyncio.Event()
    runs = 0

    @fleet.background
    async def waits_for_a_cancelled_one() -> None:
        nonlocal runs
        runs += 1
        if runs > 1:
            done.set()
            return
        helper = asyncio.ensure_future(asyncio.Event().wait())
        helper.cancel()
        await helper

    async with fleet, asyncio.timeout(10):
        await done.wait()
    assert fleet.background_tasks[0].crashes == 1


async def test_health_tells_the_reason_and_recovers(settings: Settings, own_valkey: EmbeddedRedis) -> None:
    fleet = Fleet(replace(settings, redis_url=own_valkey.url, health_timeout_s=1.0))
    assert not (await fleet.health()).ok
    async with fleet:
        assert (await fleet.health()).ok
        own_valkey.kill()
        began = asyncio.get_running_loop().time()
        health = await fleet.health()
        assert asyncio.get_running_loop().time() - began < 4.0  # a call by itself would wait for 5 s
        assert health.error is not None
        assert health.error.startswith("redis: ")
        assert "refused" in health.error, "the reason, not only that nothing came"
        assert (await fleet.readiness()).ok, "a Redis outage alone must not take the instance away"


async def test_check_that_never_ends_is_bounded_and_does_not_delay_the_others() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def soon() -> None:
        await asyncio.sleep(0)

    async def broken() -> None:
        raise OSError("at redis://:hunter2@h")

    checks = await asyncio.wait_for(run_checks({"a": never, "b": soon, "c": broken}, 0.05, Redactor()), 5)
    assert [check.error for check in checks] == ["a: no answer within 0.05 s", None, "c: at redis://:***@h"]


async def test_frozen_redis_is_noticed_within_the_health_timeout(settings: Settings, own_valkey: EmbeddedRedis) -> None:
    async with Fleet(replace(settings, redis_url=own_valkey.url, health_timeout_s=0.3)) as fleet:
        own_valkey.pause()
        try:
            assert not (await asyncio.wait_for(fleet.health(), 4.5)).ok  # a call by itself would wait for 5 s
        finally:
            own_valkey.resume()


async def test_readiness_requires_what_the_settings_name(settings: Settings, own_valkey: EmbeddedRedis) -> None:
    required = replace(settings, redis_url=own_valkey.url, ready_requires=frozenset({"redis"}), health_timeout_s=2.0)
    async with Fleet(required) as fleet:
        assert (await fleet.readiness()).ok
        own_valkey.kill()
        readiness = await fleet.readiness()
        assert readiness.reasons[0].startswith("redis: ")
    async with Fleet(replace(settings, ready_requires=frozenset({"postgres"}))) as fleet:
        assert (await fleet.readiness()).reasons == ("postgres: not configured",)


async def test_draining_fleet_is_not_ready_and_still_healthy(settings: Settings) -> None:
    async with Fleet(settings) as fleet:
        await fleet.drain()
        await fleet.drain()
        assert fleet.state is FleetState.DRAINING
        assert (await fleet.readiness()).reasons == ("the fleet is draining",)
        assert (await fleet.health()).ok


async def test_handles_are_shared_by_name_and_refuse_other_options(settings: Settings) -> None:
    fleet = Fleet(settings)
    flags = fleet.map("flags")
    assert fleet.map("flags") is flags
    with pytest.raises(ConfigError, match="flags"):
        fleet.map("flags", ttl_s=3.0)
    with pytest.raises(NotStarted):
        flags.get("x")
    async with fleet:
        assert fleet.map("flags") is flags
        with pytest.raises(StateError, match=r"Map\.join"):
            fleet.map("other")


def test_options_of_the_parts_are_those_of_their_classes() -> None:
    """`Fleet` spells them out for type checkers; they must not drift apart."""

    def options(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters.values()
        given = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {
            name: default for name, default in given.items() if name not in ("logger", "codec", "instance", "redis_url")
        }

    assert options(Fleet.map) == options(Map.__init__)
    assert options(Fleet.stream) == options(Stream.__init__)
    assert options(Fleet.migrations) == {**options(Migrations.__init__), "application": None}
    assert options(Fleet.realtime) == options(Server.__init__)


async def test_namespace_and_service_reach_the_parts(with_postgres: Settings, unique: str) -> None:
    async with Fleet(with_postgres, service="tracker") as fleet:
        assert fleet.instance.service == "tracker"
        assert fleet.redis.key("x") == f"{unique}:x"
        row = await fleet.postgres.fetch_one("SELECT current_setting('application_name')")
        assert row == (f"flotta:tracker:{fleet.instance.id}"[:63],)
        async with await Map.join("own", fleet.redis) as own:
            await own.set("a", "b")
        assert await fleet.redis.exists(f"{unique}:map:own:content")


@pytest.mark.parametrize(
    ("service", "instance", "shown"),
    [("tracker", "api-1", "flotta:tracker:api-1"), ("my tracker", "api\n1 ü", "flotta:my_tracker:api_1__")],
)
async def test_redis_sees_whose_each_connection_is(
    settings: Settings, unique: str, service: str, instance: str, shown: str
) -> None:
    fleet = Fleet(replace(settings, instance=f"{instance}-{unique}"), service=service)
    fleet.map("flags")
    stream = fleet.stream("events")
    async with fleet, stream.sink("persister") as sink:
        await stream.add("moved", b"")
        await sink.ack(await anext(sink))
        clients = await fleet.redis.link.call("CLIENT", "LIST")
        names = [field.removeprefix("name=") for field in clients.decode().split() if field.startswith("name=")]
        link = f"{shown}-{unique}"
        # The link, the connection of the subscriptions, and the sink's own.
        assert sorted(name for name in names if unique in name) == [link, link, f"{link}:sink-persister"]


async def test_realtime_server_starts_and_drains_with_the_fleet(settings: Settings) -> None:
    fleet = Fleet(settings)
    sio = fleet.realtime()
    async with fleet:
        assert sio.running
        await fleet.drain(1.0)
        assert not sio.running


async def test_two_fleets_migrate_once_and_are_ready_with_the_schema(with_postgres: Settings, tmp_path: Path) -> None:
    (tmp_path / "0001_ships.sql").write_text("CREATE TABLE ships (name text);")
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "first.sql").write_text("INSERT INTO ships VALUES ('Vega');")
    fleets = [Fleet(replace(with_postgres, instance=f"i{n}")) for n in range(2)]
    seen: list[Any] = []
    for fleet in fleets:
        fleet.migrations(tmp_path, seeds=tmp_path / "seeds")

        @fleet.on_start
        async def look(fleet: Fleet = fleet) -> None:
            seen.append(await fleet.postgres.fetch("SELECT name FROM ships"))

    await asyncio.gather(*(fleet.start() for fleet in fleets))
    assert seen == [[("Vega",)], [("Vega",)]]
    await asyncio.gather(*(fleet.stop() for fleet in fleets))


async def test_migrations_use_the_direct_url(with_postgres: Settings, tmp_path: Path) -> None:
    (tmp_path / "0001_ships.sql").write_text("CREATE TABLE ships (name text);")
    fleet = Fleet(replace(with_postgres, database_direct_url="postgresql://nobody@127.0.0.1:1/none"))
    fleet.migrations(tmp_path, wait_timeout_s=0.2)
    with pytest.raises((DatabaseUnavailable, MigrationTimeout), match=r"127\.0\.0\.1:1"):
        await fleet.start()


async def test_fastapi_lifespan_starts_and_stops_it(settings: Settings) -> None:
    fleet = Fleet(settings)
    flags = fleet.map("flags")
    app = FastAPI(lifespan=fleet.lifespan)

    @app.get("/flag")
    async def flag() -> dict[str, str | None]:
        return {"x": flags.get("x")}

    async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app), base_url="http://t") as http:
        await flags.set_and_wait("x", "on")
        assert (await http.get("/flag")).json() == {"x": "on"}
    assert fleet.state is FleetState.STOPPED


async def test_forgotten_fleet_leaves_the_registry() -> None:
    fleet = Fleet()
    assert fleet in registered()
    del fleet
    gc.collect()
    assert all(f.state is not FleetState.NEW or f._given_settings is not None for f in registered())


@pytest.fixture
def process_settings(settings: Settings) -> Iterator[Settings]:
    use_settings(settings)
    yield settings
    use_settings(None)


async def test_settings_of_the_process_hold_for_fleets_without_their_own(process_settings: Settings) -> None:
    async with Fleet() as fleet:
        assert fleet.settings is process_settings


async def test_settings_cannot_be_read_before_the_start() -> None:
    with pytest.raises(NotStarted):
        _ = Fleet().settings
    with pytest.raises(NotStarted):
        _ = Fleet().instance
