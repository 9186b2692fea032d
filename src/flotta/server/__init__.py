"""One instance: serves an ASGI or WSGI application, tells how it is, and ends in order.

``config`` what to serve, ``loading`` finds the application, ``worker`` the life of the process, ``drain`` its end,
``gate`` stands before the application, ``metrics``, ``logs``, ``watchdog`` and ``status`` tell others about it.
"""

from __future__ import annotations

from flotta.server.config import ServeConfig
from flotta.server.worker import EXIT_FORCED, EXIT_OK, EXIT_START_FAILED, serve

__all__ = ["EXIT_FORCED", "EXIT_OK", "EXIT_START_FAILED", "ServeConfig", "serve"]
