"""``flotta pool``: see what worker pools do, and step in."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import click
import msgspec

from flotta.cli._pool_output import (
    ago,
    count_option,
    counted,
    first,
    job_lines,
    job_record,
    json_option,
    on_pool,
    readable,
    show_summary,
    show_tasks,
    since,
    task_lines,
    timer_record,
    until,
    worker_record,
    worker_state,
    write_json,
    write_record,
    write_table,
)
from flotta.cli._redis import connected, log, redis_option, run_until_interrupt
from flotta.cli.deadletters import dead, discard, redrive
from flotta.errors import NotRunning
from flotta.pool.inspection import PoolView, PoolWorker, find_pools
from flotta.pool.jobs.states import JobState, StopAnswer
from flotta.pool.node import Node

__all__ = ["pool_group"]

_SHUTDOWN_POLL_S: Final = 0.2
_NODES_LEAVE_POLLS: Final = 25
_STATES: Final = {state.value: state for state in JobState}


@click.group("pool")
def pool_group() -> None:
    """See what worker pools do, and step in.

    \b
      flotta pool list                              every pool of this Redis
      flotta pool info orders                       workers, jobs, tasks and dead letters in figures
      flotta pool jobs orders --state running       its jobs, and who runs them
      flotta pool dead orders                       what was given up, and why
      flotta pool redrive orders --all --name charge
      flotta pool stop orders vessel:367000140      end one job for good
      flotta pool drain orders api-1.5f0c           let one worker hand its jobs to the others
    """


for command in (dead, redrive, discard):
    pool_group.add_command(command)


# --- looking ---------------------------------------------------------------------------------------------------------


@pool_group.command("list", short_help="Every pool, in figures.")
@redis_option
@json_option
def list_pools(*, url: str | None, as_json: bool) -> None:
    """Print every pool, in figures."""

    async def main() -> int:
        async with connected(url) as redis:
            summaries = [await PoolView(redis, name).summary() for name in await find_pools(redis)]
        if as_json:
            write_json([dataclasses.asdict(summary) for summary in summaries])
        elif summaries:
            write_table(
                ("pool", "workers", "jobs", "queued", "tasks", "running", "dead"),
                [
                    (
                        one.name + (" (shutting down)" if one.shutting_down else ""),
                        one.workers,
                        one.jobs,
                        one.queued,
                        one.tasks_waiting,
                        one.tasks_running,
                        one.dead,
                    )
                    for one in summaries
                ],
            )
        else:
            click.echo("no pools", err=True)
        return 0

    sys.exit(run_until_interrupt(main()))


@pool_group.command("info", short_help="One pool in figures.")
@click.argument("name")
@redis_option
@json_option
def info(*, name: str, url: str | None, as_json: bool) -> None:
    """Print pool NAME in figures: its workers, jobs, tasks, timers and dead letters."""

    async def look(view: PoolView) -> int:
        summary, figures, timers = await view.summary(), await view.task_figures(), await view.timers()
        if as_json:
            record = dataclasses.asdict(summary)
            write_json({**record, "tasks": dataclasses.asdict(figures), "timers": [timer_record(t) for t in timers]})
        else:
            show_summary(summary, figures, timers)
        return 0

    on_pool(name, url, look)


@pool_group.command("workers", short_help="Its workers, and what each has.")
@click.argument("name")
@redis_option
@json_option
def workers(*, name: str, url: str | None, as_json: bool) -> None:
    """Print the workers of pool NAME, the oldest first, with what each has."""

    async def look(view: PoolView) -> int:
        found = await view.workers()
        if as_json:
            write_json([worker_record(worker) for worker in found])
        else:
            rows = [
                (w.id, worker_state(w), w.jobs, w.tasks, w.info.service or "-", f"{w.info.host}:{w.info.pid}",
                 since(w.info.since_ms))
                for w in found
            ]  # fmt: skip
            write_table(("worker", "state", "jobs", "tasks", "service", "process", "since"), rows, none="no workers")
        return 0

    on_pool(name, url, look)


@pool_group.command("jobs", short_help="Its jobs, and who runs them.")
@click.argument("name")
@click.option("--state", type=click.Choice(list(_STATES)), help="Only jobs in this state.")
@click.option("--worker", metavar="ID", help="Only jobs of this worker.")
@count_option
@redis_option
@json_option
def jobs(*, name: str, state: str | None, worker: str | None, count: int, url: str | None, as_json: bool) -> None:
    """Print the jobs of pool NAME and who runs them.

    With more of them than --count, which ones are shown is left to chance.
    """

    async def look(view: PoolView) -> int:
        wanted = _STATES[state] if state is not None else None
        found, more = await first(view.jobs(worker=worker, state=wanted), count)
        if as_json:
            write_json([job_record(job) for job in found])
        else:
            rows = [
                (job.key, job.state.value, job.kind or "-", job.owner or "(parked)", job.crashes + job.losses,
                 since(job.started_ms), job.error.partition("\n")[0] or "-")
                for job in sorted(found, key=lambda job: job.key)
            ]  # fmt: skip
            header = ("key", "state", "kind", "worker", "crashes", "started", "last error")
            write_table(header, rows, none="no such jobs", more=more)
        return 0

    on_pool(name, url, look)


@pool_group.command("job", short_help="One job, with its payload.")
@click.argument("name")
@click.argument("key")
@redis_option
@json_option
def job(*, name: str, key: str, url: str | None, as_json: bool) -> None:
    """Print the job KEY of pool NAME with its payload. Exit code 1 if there is none."""

    async def look(view: PoolView) -> int:
        found, payload = await view.store.read(key), await view.store.payload(key)
        if found is None or payload is None:
            click.echo(f"there is no job {key!r} in pool {name!r}", err=True)
            return 1
        shown = readable(payload)
        if as_json:
            write_json({**job_record(found), "payload": shown})
        else:
            write_record({**job_lines(found), "payload": shown})
        return 0

    on_pool(name, url, look)


@pool_group.command("tasks", short_help="How many tasks, and what became of the others.")
@click.argument("name")
@redis_option
@json_option
def tasks(*, name: str, url: str | None, as_json: bool) -> None:
    """Print how many tasks pool NAME has, by queue, and what has become of the others."""

    async def look(view: PoolView) -> int:
        figures = await view.task_figures()
        if as_json:
            write_json(dataclasses.asdict(figures))
        else:
            show_tasks(figures)
        return 0

    on_pool(name, url, look)


@pool_group.command("task", short_help="What is known of one task.")
@click.argument("name")
@click.argument("task_id", metavar="ID")
@redis_option
@json_option
def task(*, name: str, task_id: str, url: str | None, as_json: bool) -> None:
    """Print what is known of task ID of pool NAME. Exit code 1 if that is nothing."""

    async def look(view: PoolView) -> int:
        found = await view.tasks.info(task_id)
        if found is None:
            click.echo(f"nothing is known of task {task_id!r} in pool {name!r}", err=True)
            return 1
        write_json(msgspec.to_builtins(found)) if as_json else write_record(task_lines(found))
        return 0

    on_pool(name, url, look)


@pool_group.command("cancel", short_help="Cancel one task.")
@click.argument("name")
@click.argument("task_id", metavar="ID")
@redis_option
def cancel(*, name: str, task_id: str, url: str | None) -> None:
    """Cancel task ID of pool NAME. Exit code 1 if nothing is known of it."""

    async def act(view: PoolView) -> int:
        state = await view.tasks.cancel(task_id)
        if state is None:
            click.echo(f"nothing is known of task {task_id!r} in pool {name!r}", err=True)
            return 1
        click.echo("it runs, its worker was told to cancel it" if state.value == "running" else state.value)
        return 0

    on_pool(name, url, act)


@pool_group.command("timers", short_help="Tickers, schedulers and cron tasks.")
@click.argument("name")
@redis_option
@json_option
def timers(*, name: str, url: str | None, as_json: bool) -> None:
    """Print the tickers, schedulers and cron tasks of pool NAME, the next first."""

    async def look(view: PoolView) -> int:
        found = await view.timers()
        if as_json:
            write_json([timer_record(timer) for timer in found])
        else:
            rows = [
                (t.kind, t.name, t.rule, until(t.next_at), ago(t.last_at), "-" if t.planned is None else t.planned)
                for t in found
            ]
            write_table(("kind", "name", "rule", "next", "last", "jobs"), rows, none="no timers")
        return 0

    on_pool(name, url, look)


# --- stepping in -----------------------------------------------------------------------------------------------------


@pool_group.command("stop", short_help="End jobs for good.")
@click.argument("name")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=30.0, show_default=True, metavar="S",
              help="Wait so many seconds until they have ended.")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Do not wait until they have ended.")
@redis_option
def stop(*, name: str, keys: tuple[str, ...], timeout_s: float, no_wait: bool, url: str | None) -> None:
    """End jobs of pool NAME for good. They are not started elsewhere.

    Exit code 1 if one of them was not there, or has not ended in time: then it stays marked as stopping.
    """

    async def act(view: PoolView) -> int:
        if no_wait:
            answers = [(key, await view.store.stop(key)) for key in keys]
            return _tell([(key, None if answer is not StopAnswer.NOT_RUNNING else _NONE) for key, answer in answers])
        async with await Node.join(name, view.redis, client_only=True, logger=log()) as node:
            stops = (node.stop(key, timeout_s=timeout_s) for key in keys)
            ends = await asyncio.gather(*stops, return_exceptions=True)
        return _tell([(key, _shown(end)) for key, end in zip(keys, ends, strict=True)])

    on_pool(name, url, act)


_NONE: Final = "there is no such job"


def _shown(error: BaseException | None) -> str | None:
    return _NONE if isinstance(error, NotRunning) else None if error is None else str(error)


def _tell(ends: Iterable[tuple[str, str | None]]) -> int:
    code = 0
    for key, error in ends:
        if error is None:
            click.echo(f"{key}: stopped")
        else:
            click.echo(f"{key}: {error}", err=True)
            code = 1
    return code


@pool_group.command("notify", short_help="Send a message to a job.")
@click.argument("name")
@click.argument("key")
@click.argument("payload", required=False)
@redis_option
def notify(*, name: str, key: str, payload: str | None, url: str | None) -> None:
    """Send PAYLOAD (- or nothing: what standard input holds) to the job KEY of pool NAME.

    Exit code 1 if there is no such job.
    """
    data = sys.stdin.buffer.read() if payload in (None, "-") else str(payload).encode()

    async def act(view: PoolView) -> int:
        await view.store.notify(key, data)
        return 0

    on_pool(name, url, act)


@pool_group.command("drain", short_help="Let one worker hand its jobs over.")
@click.argument("name")
@click.argument("worker")
@redis_option
def drain(*, name: str, worker: str, url: str | None) -> None:
    """Let WORKER (the beginning of its id is enough) of pool NAME hand its jobs to the others.

    It gets no jobs any more until its process is started anew. Jobs that no other worker could take stay with it until
    one joins that can. Watch it with `flotta pool workers NAME`.
    """

    async def act(view: PoolView) -> int:
        workers = await view.workers()
        found = [one for one in workers if one.id.startswith(worker)]
        if len(found) != 1:
            what = "no worker's id begins" if not found else f"{len(found)} workers' ids begin"
            click.echo(f"{what} with {worker!r} in pool {name!r}", err=True)
            return 1
        if not await view.drain(found[0].id):
            click.echo(f"{found[0].id} has no lease any more: the others take its jobs", err=True)
            return 1
        others = [one for one in workers if one is not found[0] and one.lives and not one.leaves]
        if not others:
            what = f"{counted(found[0].jobs, 'job')} stay with it until one joins, new ones are refused, and tasks wait"
            click.echo(f"{found[0].id} drains, but no other worker is there: {what}", err=True)
            return 0
        staying = await _without_taker(view, found[0].id, others)
        click.echo(f"{found[0].id} hands over {counted(max(0, found[0].jobs - staying.total()), 'job')}")
        for kind, count in sorted(staying.items()):
            shown = f"of kind {kind!r}" if kind else "of handlers"
            click.echo(
                f"no other worker knows {counted(count, 'job')} {shown}: they stay until one joins that does", err=True
            )
        return 0

    on_pool(name, url, act)


async def _without_taker(view: PoolView, worker: str, others: Sequence[PoolWorker]) -> Counter[str]:
    """How many jobs ``worker`` has of each kind that none of ``others`` knows."""
    known = {kind for one in others for kind in one.info.kinds}
    return Counter([job.kind async for job in view.jobs(worker=worker) if job.kind not in known])


@pool_group.command("shutdown", short_help="Stop a pool everywhere, and delete it.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_option
def shutdown(*, name: str, yes: bool, url: str | None) -> None:
    """Stop the whole of pool NAME: every job ends for good, every node leaves, what it has in Redis is deleted.

    Jobs that have not ended after two minutes are taken from their workers. Ctrl-C stops watching, not the shutdown.
    """

    async def act(view: PoolView) -> int:
        summary = await view.summary()
        if not yes:
            what = f"{counted(summary.jobs, 'job')} and {counted(summary.workers, 'worker')}"
            question = f"End {what} of pool {name!r}, and delete it?"
            click.confirm(question, abort=True)
        caller = f"cli-{secrets.token_hex(6)}"
        await view.store.shutdown_begin(caller)
        said = ""
        while (step := await view.store.shutdown_step()) is not None and not step.done:
            left = f"{counted(step.queued + step.owned, 'job')} left, {step.left_s:.0f} s until they are taken away"
            if left != said:
                click.echo(left, err=True)
                said = left
            await asyncio.sleep(_SHUTDOWN_POLL_S)
        for _ in range(_NODES_LEAVE_POLLS):
            now = await view.summary()
            if not (now.nodes and now.shutting_down):  # whose service restarts may have begun it anew already
                break
            await asyncio.sleep(_SHUTDOWN_POLL_S)
        await view.store.clear_away(caller)
        click.echo(f"pool {name!r} is gone")
        return 0

    on_pool(name, url, act)
