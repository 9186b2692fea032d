"""Worker processes of a pool under faults: started, killed, paused, replaced, and every fault written down.

Owns: the processes. Invariants: each has a name of its own, which is never used again; what it printed is in a file;
none outlives the herd, also not one that stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pool_history import What
from pool_journal import Journal
from pool_worker import Code, Setup

__all__ = ["Herd", "Member", "herd", "until"]

WORKER = Path(__file__).with_name("pool_worker.py")
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 40.0
COMPLAINTS = (
    "never retrieved",
    "never awaited",
    "was destroyed but it is pending",
    "step failed",
    "step of a pool",
    "heartbeat of a pool has ended",
    "look after the pool failed",
    "AssertionError",
    "AttributeError",
    "KeyError",
    "TypeError",
)
"""What is wrong wherever it stands in a log: our own bugs, which no fault explains. What is only told for debugging is
none: a look after the pool that found Redis away is told so, with the same words."""


async def until(fact: Callable[[], Any], what: str, timeout_s: float = 20.0, *, poll_s: float = 0.01) -> Any:
    """The first true value of ``fact``; fails with ``what`` when it does not come true in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while not (value := fact()):
                await asyncio.sleep(poll_s)
            return value
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what}") from None


@dataclass
class Member:
    """One process of the herd; ``slot`` is its place, which its successor takes."""

    slot: int
    name: str
    code: Code
    process: asyncio.subprocess.Process
    paused: bool = False

    @property
    def alive(self) -> bool:
        return self.process.returncode is None


class Herd:
    """``size`` workers, as ``setup`` says. ``journal``: whose file gets the faults."""

    def __init__(self, setup: Setup, journal: Journal) -> None:
        self.setup = setup
        self.journal = journal
        self.members: dict[int, Member] = {}
        self.exits: list[tuple[str, int]] = []
        self._made = 0

    @property
    def folder(self) -> Path:
        return Path(self.setup.folder)

    async def spawn(self, slot: int, code: Code = "old", **changes: Any) -> Member:
        """Start a process in ``slot`` and return when it works. ``changes``: to its setup."""
        self._made += 1
        name = f"w{slot}.{self._made}"
        setup = msgspec.structs.replace(self.setup, process=name, code=code, **changes)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(WORKER), json.dumps(msgspec.to_builtins(setup)), stdout=log, stderr=log
            )
        member = self.members[slot] = Member(slot, name, code, process)
        ready = self.folder / f"{name}.ready"
        await until(lambda: ready.exists() or not member.alive, f"{name} is ready", START_TIMEOUT_S)
        assert member.alive, f"{name} did not start:\n{self.log(name)}"
        return member

    async def kill(self, member: Member) -> float:
        """SIGKILL; the time at which it was seen dead."""
        member.process.kill()
        await member.process.wait()
        return self.journal.say(What.KILLED, process=member.name)

    def pause(self, member: Member) -> None:
        """SIGSTOP."""
        member.paused = True
        self.journal.say(What.PAUSED, process=member.name)
        member.process.send_signal(signal.SIGSTOP)

    def resume(self, member: Member) -> None:
        """SIGCONT."""
        member.paused = False
        with contextlib.suppress(ProcessLookupError):
            member.process.send_signal(signal.SIGCONT)
        self.journal.say(What.RESUMED, process=member.name)

    async def end(self, member: Member) -> int:
        """SIGTERM; its exit code. One that does not end in time is an error."""
        with contextlib.suppress(ProcessLookupError):
            member.process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                code = await member.process.wait()
        except TimeoutError:
            await self.kill(member)
            raise AssertionError(f"{member.name} has not ended {END_TIMEOUT_S} s after SIGTERM") from None
        self.journal.say(What.EXITED, process=member.name, how=str(code))
        self.exits.append((member.name, code))
        return code

    def log(self, name: str) -> str:
        """What the process ``name`` wrote to its standard error."""
        return (self.folder / f"{name}.log").read_text()

    def complaints(self) -> list[str]:
        """Lines that no process should write, whatever happens to it."""
        return [
            f"{path.stem}: {line}"
            for path in sorted(self.folder.glob("w*.log"))
            for line in path.read_text().splitlines()
            if "[debug" not in line and any(sign in line for sign in COMPLAINTS)
        ]

    async def close(self) -> None:
        """No process is left."""
        for member in self.members.values():
            if member.alive:
                member.process.kill()
            await member.process.wait()


@contextlib.asynccontextmanager
async def herd(
    setup: Setup, size: int, journal: Journal, *, code: Callable[[int], Code] = lambda _: "old"
) -> AsyncIterator[Herd]:
    """``size`` working processes; ``code`` gives the version of each place."""
    made = Herd(setup, journal)
    try:
        await asyncio.gather(*(made.spawn(slot, code(slot)) for slot in range(size)))
        yield made
    finally:
        await made.close()
