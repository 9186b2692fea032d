"""``python -m harbor.demo``: Harbor on three instances, on embedded Redis and PostgreSQL, with the replay feed.

It makes fresh secrets and becomes ``flotta run``, which does the rest: prints ``ready http://127.0.0.1:<port>`` once
the instances serve and positions flow, shows a short status on a terminal, ends on Ctrl-C and SIGTERM with everything
it started. ``PORT`` sets the port, ``HARBOR_SPEED`` the speed of the feed (1 to 120). The data is kept in ``.flotta/``.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from harbor.web import PAGE

__all__ = ["command", "environment", "main"]

INSTANCES = 3
SOURCE = Path(__file__).parents[1]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the instances and the feed are told. Secrets are new at each start and live in no file."""
    return {
        **environ,
        "FLOTTA_SERVICE": "harbor",
        "HARBOR_SECRET": secrets.token_urlsafe(48),
        "HARBOR_DEMO": "1",
        "HARBOR_WORKER_TTL_S": "4",  # so that a killed instance's vessels are watched elsewhere before one wonders
        "HARBOR_DEMO_TOKEN": secrets.token_urlsafe(48),
        # The feed has a calendar of its own: it begins half a year back, runs faster than the clock and so passes it.
        "HARBOR_AGE_MAX_DAYS": "200",
        "HARBOR_FUTURE_MAX_DAYS": "3000000",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), environ.get("PYTHONPATH", "")])),
    }


def command() -> list[str]:
    """The ``flotta run`` that this program becomes; more arguments of the command line go along."""
    feed = f"{shlex.quote(sys.executable)} -m harbor.replay"
    return [
        *(sys.executable, "-m", "flotta", "run", "harbor.app:app", "-n", str(INSTANCES), "--embedded"),
        *("--app-dir", str(SOURCE), "--name", "harbor", "--with", f"feed={feed}"),
        *("--ready-path", f"/api/flowing?instances={INSTANCES}", *sys.argv[1:]),
    ]


def main() -> None:
    """Does not return."""
    if not (PAGE / "index.html").is_file():
        print("the page is not built yet: make web (or npm ci && npm run build in examples/harbor/web)")
        sys.exit(2)
    arguments = command()
    os.execve(arguments[0], arguments, environment(os.environ))  # noqa: S606 - its own interpreter, no shell


if __name__ == "__main__":
    main()
