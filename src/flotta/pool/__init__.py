"""Worker pools: keyed jobs that run on exactly one worker of the fleet, short tasks, tickers and schedulers."""

from __future__ import annotations

from flotta.pool.backoff import Backoff
from flotta.pool.deadletters import DeadLetter, DeadLetters, Redriven
from flotta.pool.declared import DeclaredJob, JobOptions
from flotta.pool.jobs.handler import Handler, NotificationHandler
from flotta.pool.jobs.job import Job, StopReason
from flotta.pool.jobs.mailbox import Notification
from flotta.pool.jobs.records import JobInfo
from flotta.pool.jobs.states import JobState
from flotta.pool.members.membership import WorkerInfo
from flotta.pool.node import JobHandle, Node, PoolWorker
from flotta.pool.options import PoolOptions
from flotta.pool.schedules.cron import Cron, Every
from flotta.pool.schedules.scheduler import Plan, PlannedJob, Schedule, ScheduleStop
from flotta.pool.schedules.ticker import Tick, Ticker
from flotta.pool.stats import NodeStats
from flotta.pool.tasks import (
    INJECTED,
    Depends,
    Enqueuing,
    PerKey,
    Progress,
    Rate,
    Retry,
    RetryTask,
    Task,
    TaskCall,
    TaskContext,
    TaskHandle,
    TaskInfo,
    TaskState,
)
from flotta.pool.worker import Worker, WorkerState
from flotta.pool.workerpool import WorkerPool

__all__ = [
    "INJECTED",
    "Backoff",
    "Cron",
    "DeadLetter",
    "DeadLetters",
    "DeclaredJob",
    "Depends",
    "Enqueuing",
    "Every",
    "Handler",
    "Job",
    "JobHandle",
    "JobInfo",
    "JobOptions",
    "JobState",
    "Node",
    "NodeStats",
    "Notification",
    "NotificationHandler",
    "PerKey",
    "Plan",
    "PlannedJob",
    "PoolOptions",
    "PoolWorker",
    "Progress",
    "Rate",
    "Redriven",
    "Retry",
    "RetryTask",
    "Schedule",
    "ScheduleStop",
    "StopReason",
    "Task",
    "TaskCall",
    "TaskContext",
    "TaskHandle",
    "TaskInfo",
    "TaskState",
    "Tick",
    "Ticker",
    "Worker",
    "WorkerInfo",
    "WorkerPool",
    "WorkerState",
]
