"""How every benchmark here measures: interleaved rounds against peers in the same run, medians, ranges, versions.

Owns: the form of the lines. These machines are shared and noisy, so a figure counts only as a ratio to a peer that was
measured in the same rounds. Nothing here decides what is good enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util

__all__ = ["Result", "Side", "compete", "is_installed", "pin", "print_versions", "report", "rounds_from", "run", "skip"]

Side = Callable[[], Awaitable[float]]
"""One measurement of one contestant: a number in the contest's unit."""
ROUNDS_DEFAULT = 5


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did in all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(min(self.values))} .. {_short(max(self.values))}]"


async def compete(sides: Mapping[str, Side], *, rounds: int = ROUNDS_DEFAULT) -> dict[str, Result]:
    """Measure every side once per round, in turning order, after one round that is thrown away."""
    names = list(sides)
    for name in names:
        await sides[name]()
    values: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            gc.collect()
            values[name].append(await sides[name]())
    return {name: Result(tuple(found)) for name, found in values.items()}


def report(
    name: str, results: Mapping[str, Result], *, unit: str, ours: str = "flotta", peers: Iterable[str] = ()
) -> None:
    """One BENCH line for each peer (default: all others) and the range of each contestant below."""
    own = results[ours]
    others = [peer for peer in (peers or results) if peer != ours and peer in results]
    for peer in others:
        ratio = own.median / results[peer].median
        medians = f"flotta={_short(own.median)} {peer}={_short(results[peer].median)}"
        print(f"BENCH {name} {medians} ratio={ratio:.2f} unit={unit}")
    if not others:
        print(f"BENCH {name} flotta={_short(own.median)} unit={unit}")
    ranges = "; ".join(f"{'flotta' if side == ours else side} {results[side]}" for side in [ours, *others])
    print(f"      median [range] of {len(own.values)} rounds: {ranges}", flush=True)


def skip(peer: str, reason: str) -> None:
    """Say by name which peer is not measured, and why."""
    print(f"SKIP {peer}: {reason}", flush=True)


def is_installed(peer: str, module: str) -> bool:
    """Whether the peer's module is there; if not, the skip is printed."""
    if util.find_spec(module) is not None:
        return True
    skip(peer, f"the module {module} is not installed (pip install 'flotta[bench]')")
    return False


def print_versions(*packages: str, **others: str) -> None:
    """The machine, Python and the versions of ``packages``; ``others`` as name=version (servers)."""
    print(f"# {platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    shown = [f"{name} {version}" for name, version in others.items()]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            shown.append(f"{package} {metadata.version(package)}")
    print("# " + ", ".join(shown), flush=True)


def pin(server_pids: Iterable[int]) -> None:
    """Put servers on the last core and this process on the others, where the system can and has two or more."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    for pid in server_pids:
        os.sched_setaffinity(pid, {cores[-1]})
    os.sched_setaffinity(0, set(cores[:-1]))


def rounds_from(environ: Mapping[str, str] = os.environ) -> int:
    """``ROUNDS`` from the environment, at least one; default five."""
    return max(1, int(environ.get("ROUNDS", ROUNDS_DEFAULT)))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run ``main`` under uvloop if it is there (``LOOP=asyncio`` forces the standard loop)."""
    if os.environ.get("LOOP") != "asyncio" and util.find_spec("uvloop") is not None:
        import uvloop

        print("# event loop: uvloop")
        uvloop.run(_as_coroutine(main))
    else:
        print("# event loop: asyncio")
        asyncio.run(_as_coroutine(main))
    sys.stdout.flush()


async def _as_coroutine(main: Callable[[], Awaitable[None]]) -> None:
    await main()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
