"""What the scripts of a pool's jobs must do, said again as dumbly as possible: dicts, lists, no index, no cleverness.

Owns the expected truth of the model test. Where a job is queued, parked or owned is never stored here but looked up in
its record; what the server chooses itself (new fencing tokens, which jobs of a random choice) is learned from it and
checked to be allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["NOTES_MAX", "Oracle", "Record", "Token"]

NOTES_MAX = 1_000
Entry = tuple[Any, ...]


class Token:
    """A fencing token that the server has still to name."""

    def __init__(self) -> None:
        self.value: int | None = None

    def __repr__(self) -> str:
        return f"g{self.value}"


@dataclass
class Record:
    """One job."""

    owner: str
    fence: Token
    kind: str
    payload: bytes
    slot: int
    did: str
    node: str
    crashes_max: int
    scheduler: str = ""
    state: str = "q"
    crashes: int = 0
    losses: int = 0
    started: bool = False
    checkpoint: bytes | None = None
    error: str = ""
    waiters: list[str] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    crashed_fence: int | None = None
    late: bool = False


class Oracle:
    """The whole pool. ``leases``: worker -> whether its lease is valid; a worker that is not in it has none."""

    def __init__(self, *, queue_max_per_worker: int, inbox_max: int) -> None:
        self.queue_max_per_worker = queue_max_per_worker
        self.inbox_max = inbox_max
        self.records: dict[str, Record] = {}
        self.leases: dict[str, bool] = {}
        self.leaving: set[str] = set()
        self.inboxes: dict[str, list[Entry]] = {}
        self.replies: dict[str, list[Entry]] = {}
        self.slots: dict[int, str] = {}
        self.dead: list[dict[str, Any]] = []
        self.shutdown = ""
        self.time_over = False
        self.ended: dict[str, str] = {}  # dispatch id -> how the job ended
        self.admitted: set[str] = set()

    # --- what is where ----------------------------------------------------------------------------------------------

    def queued(self) -> set[str]:
        return {key for key, job in self.records.items() if job.state == "q"}

    def parked(self) -> set[str]:
        return {key for key, job in self.records.items() if job.owner == ""}

    def owned(self, worker: str) -> set[str]:
        return {key for key, job in self.records.items() if job.owner == worker}

    def live(self, worker: str) -> bool:
        return self.leases.get(worker, False)

    def takes(self, worker: str) -> bool:
        return self.live(worker) and worker not in self.leaving

    def slot_owner(self, slot: int) -> str:
        worker = self.slots.get(slot, "")
        return worker if self.takes(worker) else ""

    def mine(self, worker: str, key: str, fence: int) -> Record | str:
        job = self.records.get(key)
        if job is None:
            return "N"
        return job if job.owner == worker and job.fence.value == fence else "F"

    # --- what several steps do --------------------------------------------------------------------------------------

    def ring(self, worker: str, *entry: Any) -> bool:
        if worker not in self.inboxes:
            return False
        self.inboxes[worker].append(entry)
        return True

    def reply(self, node: str, *entry: Any) -> None:
        if node in self.replies:
            self.replies[node].append(entry)

    def drop(self, key: str, how: str, answer: str = "", reason: str = "") -> None:
        job = self.records.pop(key)
        self.ended[job.did] = how
        for node in job.waiters:
            self.reply(node, "stopped", key)
        if answer and not job.started:
            self.reply(job.node, answer, key, job.did, reason)

    def bury(self, key: str, reason: str) -> None:
        job = self.records[key]
        self.dead.append(
            {
                "key": key, "name": job.kind, "payload": job.payload, "checkpoint": job.checkpoint, "error": reason,
                "crashes": job.crashes, "losses": job.losses, "crashes_max": job.crashes_max, "slot": job.slot,
            }
        )  # fmt: skip
        self.drop(key, "dead", "failed", reason)

    def pass_note(self, key: str, payload: bytes) -> None:
        job = self.records[key]
        if not job.owner or not self.ring(job.owner, "note", key, payload):
            job.notes.append(payload)

    def requeue(self, key: str, to: str) -> None:
        job = self.records[key]
        job.state, job.owner, job.fence, job.late = "q", to, Token(), False
        if to and self.ring(to, "start", key, job.fence, job.kind):
            for payload in job.notes:
                self.ring(to, "note", key, payload)
            job.notes = []

    # --- dispatchers ------------------------------------------------------------------------------------------------

    def dispatch(self, key: str, *, slot: int, did: str, **facts: Any) -> str:
        job = self.records.get(key)
        if job is not None:
            return "O" if job.did == did else "E"
        if self.shutdown:
            return "S"
        if not self.slot_owner(slot) and not any(self.takes(worker) for worker in self.leases):
            return "N"
        if len(self.queued()) >= len(self.leases) * self.queue_max_per_worker:
            return "F"
        job = self.records[key] = Record(owner=self.slot_owner(slot), fence=Token(), slot=slot, did=did, **facts)
        self.admitted.add(did)
        if job.owner:
            self.ring(job.owner, "start", key, job.fence, job.kind)
        return "O"

    def withdraw(self, key: str, did: str) -> str:
        job = self.records.get(key)
        if job is None or job.did != did:
            return "G"
        if job.state == "x":
            return "X"
        if job.started:
            return "S"
        if job.state == "q":
            self.drop(key, "withdrawn")
            return "W"
        job.state = "x"
        self.ring(job.owner, "stop", key, job.fence)
        return "X"

    def stop(self, key: str, node: str) -> str:
        job = self.records.get(key)
        if job is None:
            return "N"
        if job.state == "q":
            self.drop(key, "stopped", "gone")
            return "G"
        job.state = "x"
        if node and node not in job.waiters:
            job.waiters.append(node)
        self.ring(job.owner, "stop", key, job.fence)
        return "S"

    def notify(self, key: str, payload: bytes) -> str:
        job = self.records.get(key)
        if job is None or job.state == "x":
            return "N"
        entries = self.inboxes.get(job.owner)
        if entries is None:
            if len(job.notes) >= NOTES_MAX:
                return "F"
        elif len(entries) >= self.inbox_max:
            return "F"
        self.pass_note(key, payload)
        return "O"

    # --- workers ----------------------------------------------------------------------------------------------------

    def claim(self, worker: str, key: str, fence: int, *, explicit: bool) -> str:
        if not self.live(worker):
            return "F"
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "x":
            return "X"
        if job.state == "q":
            job.late = False
            job.state = "s" if explicit else "r"
            if not explicit:
                self._started(worker, key, job)
        return "O"

    def _started(self, worker: str, key: str, job: Record) -> None:
        if not job.started:
            job.started = True
            self.reply(job.node, "started", key, job.did, job.fence, worker)

    def ready(self, worker: str, key: str, fence: int) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "s":
            job.state = "r"
            self._started(worker, key, job)
        return {"x": "X", "q": "F"}.get(job.state, "O")

    def start_failed(self, worker: str, key: str, fence: int, error: str) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "x":
            self.drop(key, "stopped", "gone")
            return "O"
        if job.started:
            return "S"
        if job.state == "q":
            return "F"
        self.drop(key, "start failed", "failed", error)
        return "O"

    def finished(self, worker: str, key: str, fence: int) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "q":
            return "F"
        self.drop(key, "finished", "gone")
        return "O"

    def crashed(self, worker: str, key: str, fence: int, error: str) -> str:
        job = self.records.get(key)
        if job is None:
            return "N"
        if job.owner == worker and job.state == "b" and job.crashed_fence == fence:
            return "B"
        if job.owner != worker or job.fence.value != fence or job.state == "q":
            return "F"
        if job.state == "x":
            self.drop(key, "stopped", "gone")
            return "X"
        job.crashes += 1
        if job.crashes + job.losses > job.crashes_max:
            self.bury(key, error)
            return "D"
        job.state, job.error, job.crashed_fence, job.fence = "b", error, fence, Token()
        return "B"

    def restarted(self, worker: str, key: str, fence: int) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "b":
            job.state = "r"
            self._started(worker, key, job)
        return {"x": "X", "q": "F"}.get(job.state, "O")

    def checkpoint(self, worker: str, key: str, fence: int, data: bytes) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        job.checkpoint = data
        return "O"

    def reset_crashes(self, worker: str, key: str, fence: int) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        job.crashes, job.losses, job.error = 0, 0, ""
        return "O"

    def release(self, worker: str, key: str, fence: int, *, with_notes: bool) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "x":
            self.drop(key, "stopped", "gone")
            return "X"
        to = self.slot_owner(job.slot)
        if to == worker:
            return "K"
        self.requeue(key, to)
        if with_notes:
            entries = self.inboxes.get(worker, [])
            for entry in [entry for entry in entries if entry[:2] == ("note", key)]:
                entries.remove(entry)
                self.pass_note(key, entry[2])
        return "O"

    def decline(self, worker: str, key: str, fence: int, to: str) -> str:
        job = self.mine(worker, key, fence)
        if isinstance(job, str):
            return job
        if job.state == "x":
            self.drop(key, "stopped", "gone")
            return "X"
        self.requeue(key, to if to != worker and self.takes(to) else "")
        return "O"

    # --- coordinators: `touched` are the keys that the server chose -------------------------------------------------

    def sweep(self, touched: list[str], workers: list[str]) -> tuple[int, int, int]:
        moved = rung = parked = 0
        for key in touched:
            job = self.records[key]
            others = [worker for worker in self._candidates(job.slot, workers) if worker != job.owner]
            job.late = False
            if others:
                self.requeue(key, others[0])
                moved += 1
            elif job.owner:
                self.ring(job.owner, "start", key, job.fence, job.kind)
                rung += 1
            else:
                parked += 1
        return moved, rung, parked

    def _candidates(self, slot: int, workers: list[str]) -> list[str]:
        turn = slot % len(workers) if workers else 0
        return [worker for worker in (self.slots.get(slot, ""), *workers[turn:], *workers[:turn]) if self.takes(worker)]

    def reap(self, worker: str, touched: list[str], *, blame: bool) -> tuple[int, int, int, int]:
        moved = parked = dropped = dead = 0
        for key in touched:
            job = self.records[key]
            if job.state == "x":
                self.drop(key, "stopped", "gone")
                dropped += 1
                continue
            if job.state != "q" and blame:
                job.losses += 1
                if job.crashes + job.losses > job.crashes_max:
                    self.bury(key, "its workers died")
                    dead += 1
                    continue
            self.requeue(key, self.slot_owner(job.slot))
            moved, parked = (moved + 1, parked) if job.owner else (moved, parked + 1)
        return moved, parked, dropped, dead

    def bury_worker(self, worker: str, first: list[Entry], limit: int) -> str:
        """``first``: what stands first in its inbox, up to ``limit`` entries."""
        if self.live(worker):
            return "L"
        if self.owned(worker):
            return "J"
        for entry in first:
            self.inboxes[worker].remove(entry)
            if entry[0] == "note" and entry[1] in self.records and self.records[entry[1]].state != "x":
                self.pass_note(entry[1], entry[2])
        if len(first) == limit:
            return "M"
        self.inboxes.pop(worker, None)
        self.leases.pop(worker, None)
        self.leaving.discard(worker)
        return "D"

    def adopt(self, touched: list[str]) -> None:
        for key in touched:
            self.requeue(key, self.slot_owner(self.records[key].slot))

    def shutdown_begin(self, node: str) -> str:
        self.shutdown = self.shutdown or node
        for worker in self.leases:
            self.ring(worker, "shutdown")
        return self.shutdown

    def redrive(self, place: int, did: str) -> str:
        """``place``: which of the letters; two of one job may be alike."""
        letter = self.dead[place]
        key = letter["key"]
        if self.shutdown:
            return "S"
        if key in self.records:
            return "E"
        del self.dead[place]
        self.records[key] = Record(
            owner="", fence=Token(), kind=letter["name"], payload=letter["payload"], slot=letter["slot"], did=did,
            node="", crashes_max=letter["crashes_max"], started=True, checkpoint=letter["checkpoint"],
        )  # fmt: skip
        self.admitted.add(did)
        self.requeue(key, self.slot_owner(letter["slot"]))
        return "O"
