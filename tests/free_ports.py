"""Ports for processes that must be told theirs: what is free when it is asked for stays free until they listen.

Below the range from which the kernel serves whoever asks it for any port: other tests do that all the time, each client
that connects too, and a process that starts for seconds would find its port taken.
"""

from __future__ import annotations

import contextlib
import secrets
import socket

__all__ = ["free_port"]

_RANGE = range(20_000, 32_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    while True:
        port = secrets.choice(_RANGE)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
