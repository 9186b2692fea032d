"""The names of a pool's keys in Redis, the fields of a job's record, and what names and keys may look like. Pure.

Owns the one place where a key's name is made; the scripts make theirs from the same prefix (``lua/_common.lua``).
Invariants: every key of a pool begins with its prefix and shares its hash tag, so a script may touch any of them on a
Cluster, too; a name that passed here never contains what separates it from the rest of a key.

The record ``job:<key>`` is a hash with short field names, because there may be millions:

===== ======================================================================================================
field meaning
===== ======================================================================================================
``s`` state: ``q`` queued, ``s`` starting, ``r`` running, ``b`` backoff, ``x`` stopping
``o`` owner (worker id; empty while parked)
``g`` fencing token ("generation") of this ownership
``k`` kind
``p`` payload
``n`` slot
``d`` dispatch id
``f`` node that dispatched it and may wait for the start
``c`` crashes        ``l`` losses (owners that died)       ``m`` crashes and losses that it may have together
``t`` ms when dispatched     ``b`` ms when first started (absent before)
``a`` the fencing token that its last crash ended
``e`` last error     ``z`` checkpoint     ``w`` nodes that wait for the stop, between commas
``y`` scheduler that planned it
``u`` ``meta.members`` when no worker knew its kind: until that changes it stays parked
===== ======================================================================================================
"""

from __future__ import annotations

import re
import zlib
from typing import Final, final

from flotta.errors import InvalidName

__all__ = ["KEY_BYTES_MAX", "SLOTS", "PoolKeys", "check_key", "check_name", "slot_of"]

SLOTS: Final = 4_096
"""Slots of the table: a key belongs to one for ever, a slot to one worker at a time."""
KEY_BYTES_MAX: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_NAME_RULE: Final = "1 to 100 of the letters A-Z a-z, the digits, '.', '_' and '-'"


def check_name(kind: str, name: str) -> str:
    """``name``, if a pool, worker, node, queue or scheduler (``kind``) may have it. Raises ``InvalidName``."""
    given: object = name
    if not isinstance(given, str) or _NAME.fullmatch(given) is None:
        raise InvalidName(kind, name, _NAME_RULE)
    return name


def check_key(key: str) -> str:
    """``key``, if a job may have it: any text of 1 to 500 bytes in UTF-8. Raises ``InvalidName``."""
    try:
        length = len(key.encode())
    except (UnicodeEncodeError, AttributeError):  # the second: no text at all
        length = 0
    if not 0 < length <= KEY_BYTES_MAX:
        raise InvalidName("job key", key, f"any text of 1 to {KEY_BYTES_MAX} bytes in UTF-8")
    return key


def slot_of(key: str) -> int:
    """The slot of a job's key."""
    return zlib.crc32(key.encode()) % SLOTS


@final
class PoolKeys:
    """The keys of the pool ``name``; ``prefix`` is what all of them begin with.

    ``namespace`` goes before everything. Raises ``InvalidName`` for a name that breaks the rule.
    """

    __slots__ = (
        "clearing", "conc", "coordinator", "dead", "due", "idle", "leases", "leaving", "meta", "name", "nodes",
        "parked", "placed", "prefix", "queued", "rate", "slotjobs", "slots", "tickers", "workers",
    )  # fmt: skip

    def __init__(self, name: str, *, namespace: str = "") -> None:
        self.name = check_name("pool", name)
        self.prefix = prefix = f"{namespace}pool:{{{name}}}:"
        self.meta = f"{prefix}meta"
        self.nodes = f"{prefix}nodes"
        self.leases = f"{prefix}leases"
        self.workers = f"{prefix}workers"
        self.leaving = f"{prefix}leaving"
        self.coordinator = f"{prefix}coordinator"
        self.clearing = f"{prefix}clearing"
        self.slots = f"{prefix}slots"
        self.placed = f"{prefix}placed"
        self.slotjobs = f"{prefix}slotjobs"
        self.queued = f"{prefix}queued"
        self.parked = f"{prefix}parked"
        self.dead = f"{prefix}dead"
        self.tickers = f"{prefix}tickers"
        self.due = f"{prefix}due"
        self.idle = f"{prefix}idle"
        self.conc = f"{prefix}conc"
        self.rate = f"{prefix}rate"

    def job(self, key: str) -> str:
        """Hash: the record of a job."""
        return f"{self.prefix}job:{key}"

    def owned(self, worker: str) -> str:
        """Set: the keys of the jobs of a worker."""
        return f"{self.prefix}owned:{worker}"

    def held(self, worker: str) -> str:
        """Set: the ids of the tasks that a worker runs."""
        return f"{self.prefix}held:{worker}"

    def inbox(self, worker: str) -> str:
        """Stream: the doorbells of a worker."""
        return f"{self.prefix}inbox:{worker}"

    def replies(self, node: str) -> str:
        """Stream: answers for a node."""
        return f"{self.prefix}replies:{node}"

    def notes(self, key: str) -> str:
        """List: notifications of a job that is parked."""
        return f"{self.prefix}notes:{key}"

    def plan(self, scheduler: str) -> str:
        """Set: keys of the jobs that a scheduler has started and that are still there."""
        return f"{self.prefix}plan:{scheduler}"

    def task(self, id: str) -> str:  # noqa: A002 - it is its id
        """Hash: the record of a task."""
        return f"{self.prefix}task:{id}"

    def ready(self, queue: str) -> str:
        """Sorted set: tasks of a queue that may run now, the most urgent first."""
        return f"{self.prefix}ready:{queue}"
