"""Celery's side: `task_celery.py produce`; its worker is `celery -A task_celery worker`."""

from __future__ import annotations

from celery import Celery
from harness import RESULTS, URL, counter, produce_in_threads

done = counter()
app = Celery("bench", broker=URL, backend=URL if RESULTS else None)
app.conf.task_ignore_result = not RESULTS


@app.task(name="noop")
def noop() -> None:
    done.add()


if __name__ == "__main__":
    produce_in_threads(noop.delay, threads=8)
