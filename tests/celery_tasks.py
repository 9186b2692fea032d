"""A Celery app whose tasks send to the clients of a live server; `test_realtime_celery` runs its worker."""

from __future__ import annotations

import os

from celery import Celery

from flotta.realtime import SyncEmitter

url, prefix = os.environ["REDIS_URL"], os.environ["CHANNEL_PREFIX"]

app = Celery("tasks", broker=url)
app.conf.update(task_default_queue=prefix, task_ignore_result=True, broker_connection_retry_on_startup=True)
emitter = SyncEmitter(url, channel_prefix=prefix)
emitter.emit("imported", os.getpid())  # a connection is open when Celery forks


@app.task
def report(number: int, steps: int) -> None:
    """Tell the clients how far it is, and who tells."""
    for step in range(steps):
        emitter.emit("progress", {"job": number, "step": step, "pid": os.getpid()}, room="watching")
