"""The warden: a tiny process that ends what a supervisor leaves behind when it dies without a word (SIGKILL, OOM).

It owns the promise that nothing outlives its parent. It reads orders from standard input, one a line: ``+123`` (process
group 123 belongs to us), ``-123`` (it has ended). When its input ends before it has read ``bye``, its parent is dead:
every group still on the list gets SIGTERM and, after the grace given as its first argument (seconds), SIGKILL.

Why a process of its own: it sees the parent's death at once and everywhere (a pipe reaches its end on Linux and macOS
alike; PR_SET_PDEATHSIG exists on Linux only, is bound to the *thread* that forked, and covers no grandchildren), and
it covers programs that know nothing of Flotta. It is run as a plain file under ``python -I -S`` and imports nothing of
Flotta: 10 ms and a few MiB.
"""

from __future__ import annotations

import os
import signal
import sys
import time

__all__ = ["main"]

_POLL_S = 0.05


def _send(groups: set[int], sig: int) -> None:
    for group in groups:
        try:
            os.killpg(group, sig)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended


def _alive(groups: set[int]) -> set[int]:
    """Those that still have a member. Their leaders are not our children: an init process reaps them."""
    left = set()
    for group in groups:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            continue
        left.add(group)
    return left


def _end(groups: set[int], grace_s: float) -> None:
    _send(groups, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while (groups := _alive(groups)) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    _send(groups, signal.SIGKILL)


def main() -> None:
    """Read orders until the input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # only the end of the input ends it
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        order = line.strip()
        if order == b"bye":
            return
        (groups.add if order[:1] == b"+" else groups.discard)(int(order[1:]))
    _end(groups, float(sys.argv[1]))


if __name__ == "__main__":
    main()
