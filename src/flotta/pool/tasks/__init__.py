"""Short tasks: functions that some worker of the fleet runs soon, or later, once, or again until they succeed.

From below: `records` and `options` (pure), `store` (the scripts), `client` and `results` (what every node has),
`declaration`, `task` and `registry` (what code declares), `execution` and `runner` (what a worker has).
"""

from __future__ import annotations

from flotta.pool.tasks.client import TaskCall, TaskClient, TaskHandle
from flotta.pool.tasks.context import RetryTask, TaskContext
from flotta.pool.tasks.depends import INJECTED, Depends
from flotta.pool.tasks.options import PerKey, Rate, Retry
from flotta.pool.tasks.records import Progress, TaskInfo, TaskState
from flotta.pool.tasks.registry import Enqueuing, TaskRegistry
from flotta.pool.tasks.results import Results
from flotta.pool.tasks.runner import RunnerStats, TaskRunner
from flotta.pool.tasks.store import TaskStore
from flotta.pool.tasks.task import Task

__all__ = [
    "INJECTED",
    "Depends",
    "Enqueuing",
    "PerKey",
    "Progress",
    "Rate",
    "Results",
    "Retry",
    "RetryTask",
    "RunnerStats",
    "Task",
    "TaskCall",
    "TaskClient",
    "TaskContext",
    "TaskHandle",
    "TaskInfo",
    "TaskRegistry",
    "TaskRunner",
    "TaskState",
    "TaskStore",
]
