"""``python -m flotta.server``: one worker, as the supervisor starts it. ``FLOTTA_SERVE`` holds its `ServeConfig`."""

from __future__ import annotations

import os
import sys

from flotta.errors import ConfigError
from flotta.server.config import ServeConfig
from flotta.server.worker import EXIT_OK, EXIT_START_FAILED, serve


def main() -> int:
    raw = os.environ.pop("FLOTTA_SERVE", None)
    try:
        config = ServeConfig.from_json(raw or "{}")
    except ConfigError as error:
        print(f"flotta: {error}", file=sys.stderr)
        return EXIT_START_FAILED
    return serve(config)


if __name__ == "__main__":
    code = main()
    if code != EXIT_OK:
        # A thread of the application that will not end (a WSGI request past the deadline) must not keep the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
