"""Who this process is among the instances of its service.

An `Instance` never changes during the life of a process. Its id may be used again by the next process in the same place
(``api.1`` after a restart); its incarnation never is, so that the two can be told apart.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Final, final

__all__ = ["Instance"]

ID_LENGTH_MAX: Final = 63
"""What a PostgreSQL ``application_name`` and a DNS label hold."""


def new_incarnation() -> str:
    """Milliseconds since 1970 in hexadecimal, then 32 random bits: sorts by time, never repeats."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(4)}"


@final
@dataclass(frozen=True, kw_only=True)
class Instance:
    """One process of a service."""

    service: str
    id: str
    """Unique among the processes that run now; a restarted one may take it over."""
    region: str
    incarnation: str = field(default_factory=new_incarnation)
    """Unique for ever; later processes have greater ones (up to the clocks of their hosts)."""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def here(cls, *, service: str, region: str, id: str | None = None) -> Instance:  # noqa: A002 - the field's own name
        """This process. Without an ``id`` it is ``<service>-<host>-<pid>``, of which the last 63 characters stay."""
        return cls(service=service, region=region, id=id or _default_id(service))

    def __str__(self) -> str:
        return self.id


def _default_id(service: str) -> str:
    text = f"{service}-{socket.gethostname()}-{os.getpid()}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[-ID_LENGTH_MAX:].lstrip("-._")
