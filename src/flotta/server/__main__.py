"""``python -m flotta.server``: one worker, as the supervisor starts it. ``FLOTTA_SERVE`` holds its `ServeConfig`.

Invariant: after a graceful stop the process is gone within `LEAVE_S`, whatever threads the application has left
behind: the interpreter would wait for them for ever.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

from flotta.errors import ConfigError
from flotta.server.config import ServeConfig
from flotta.server.worker import EXIT_FORCED, EXIT_OK, EXIT_START_FAILED, serve

LEAVE_S: Final = 3.0


def main() -> int:
    raw = os.environ.pop("FLOTTA_SERVE", None)
    try:
        config = ServeConfig.from_json(raw or "{}")
    except ConfigError as error:
        print(f"flotta: {error}", file=sys.stderr)
        return EXIT_START_FAILED
    return serve(config)


def leave(code: int) -> None:
    """Ends the process with ``code``. One that was forced does not wait for anybody (a WSGI request past the deadline);
    one that ended gracefully waits for the threads of the application, but not for ever."""
    if code == EXIT_OK:
        timer = threading.Timer(LEAVE_S, _force)
        timer.daemon = True
        timer.start()
        return
    _end(code)


def _force() -> None:
    names = ", ".join(t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread())
    print(f"flotta: forced after {LEAVE_S:g} s: threads of the application did not end: {names}", file=sys.stderr)
    _end(EXIT_FORCED)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
