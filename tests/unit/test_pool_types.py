"""What a type checker knows of a user's pool: jobs, tasks and their handles are typed by the functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
from typing import Annotated, assert_type

from flotta.pool import INJECTED, Depends, Job, Notification, Retry, Task, TaskContext, TaskHandle, WorkerPool

pool = WorkerPool("typed")


class Db: ...


def open_db() -> Db:
    return Db()


@pool.job(key="vessel:{mmsi}")
async def watch(job: Job[list[str]], mmsi: int) -> None:
    assert_type(job.state, list[str] | None)
    async for note in job.notifications():
        assert_type(note, Notification)
    async for tick in job.notifications(every_s=1):
        assert_type(tick, Notification | None)
    await job.checkpoint(5)  # error


@pool.job(key="bare")
async def bare(job: Job) -> None: ...


@pool.task(retry=Retry(5))
async def charge(context: TaskContext, order: int, db: Annotated[Db, Depends(open_db)] = INJECTED) -> float:
    return 0.5


@pool.cron("0 6 * * *")
@pool.task()
def report() -> str:
    return ""


async def main() -> None:
    await watch.dispatch(1)
    await watch.dispatch("1")  # error
    handle = await charge.enqueue(7)
    assert_type(handle, TaskHandle[float])
    assert_type(await handle.result(), float)
    await charge.options(delay_s=1).enqueue("7")  # error
    assert_type(report, Task[[], str])
    assert_type(await (await report.enqueue()).result(), str)
"""


def test_a_typed_program_is_checked(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    wrong = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# error")]
    found = [int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line]
    assert found == wrong, checked.stdout + checked.stderr
