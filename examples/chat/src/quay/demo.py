"""``python -m quay.demo fastapi`` or ``flask``: Quay on three instances, on embedded Redis and PostgreSQL.

It makes a fresh secret and becomes ``flotta run``, which does the rest: prints ``ready http://127.0.0.1:<port>``, shows
a short status on a terminal, ends on Ctrl-C with everything it started. ``PORT`` sets the port; the data is in the
example's own ``.flotta/``, apart from that of other services. Further arguments go to ``flotta run``.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quay.page import CLIENT

__all__ = ["command", "environment", "main"]

FRAMEWORKS = ("fastapi", "flask")
INSTANCES = 3
SOURCE = Path(__file__).parents[1]
DATA = SOURCE.parent / ".flotta"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the instances are told. The secret is new at each start and lives in no file."""
    return {**environ, "FLOTTA_SERVICE": "quay", "QUAY_SECRET": secrets.token_urlsafe(48), "QUAY_DEMO": "1"}


def command(framework: str, more: Sequence[str] = ()) -> list[str]:
    """The ``flotta run`` that this program becomes."""
    return [
        *(sys.executable, "-m", "flotta", "run", f"quay.on_{framework}:app", "-n", str(INSTANCES), "--embedded"),
        *("--embedded-dir", str(DATA), "--app-dir", str(SOURCE), "--name", "quay", *more),
    ]


def main() -> None:
    """Does not return."""
    framework, *more = sys.argv[1:] or [""]
    if framework not in FRAMEWORKS:
        print(f"say which: python -m quay.demo {' or '.join(FRAMEWORKS)}")
        sys.exit(2)
    if not CLIENT.is_file():
        print("the page lacks its Socket.IO client: npm ci in examples/chat/web (make chat does it)")
        sys.exit(2)
    arguments = command(framework, more)
    os.execve(arguments[0], arguments, environment(os.environ))  # noqa: S606 - its own interpreter, no shell


if __name__ == "__main__":
    main()
