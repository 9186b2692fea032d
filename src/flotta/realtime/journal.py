"""What a server writes into its log about who comes and goes.

Refusals are warnings, sampled: of each reason the 1st, 2nd, 4th, 8th... so that a flood of them floods no log. Single
connections are debug lines, and only where the standard library's logger `NAME` is at DEBUG: a structlog that nobody
has configured prints every level. What a client sends is never written, but for its origin, cut: its query and its
headers may hold a token. Of a session's id, which whoever knows it could poll, only the first characters are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, final

from flotta.realtime.engineio.handshake import Facts, Refusal, Refused

__all__ = ["NAME", "Journal"]

NAME: Final = "flotta.realtime"
SID_SHOWN: Final = 8
ORIGIN_SHOWN: Final = 128

_TOLD: Final[Mapping[Refused, str]] = {
    Refused.AT_CAPACITY: "clients are refused: the server is full",
    Refused.CROWDED: "clients are refused: too many from their address",
    Refused.FORBIDDEN: "clients are refused: their page's origin is not allowed",
    Refused.NOT_STARTED: "clients are refused: the server has not started",
}
"""What an operator may have to do something about. The rest is counted only: scanners and late clients."""
_CURES: Final[Mapping[Refused, str]] = {
    Refused.AT_CAPACITY: "more instances, or the option connections_max",
    Refused.CROWDED: "the option connections_per_ip_max, if these are many people",
    Refused.FORBIDDEN: "list it in cors_origins, if it is yours; a proxy must pass Host on",
    Refused.NOT_STARTED: "await start() in the outermost app's lifespan: a web framework runs none of a mounted app",
}
_OLD: Final = ("1", "2", "3")
_NEWER: Final = "socket.io-client 3 or newer, which speaks Engine.IO 4"


@final
class Journal:
    """One server's."""

    def __init__(self, logger: Any) -> None:
        self.refusals: dict[str, int] = {}
        """Refused requests by reason."""
        self._log = logger
        self._level = logging.getLogger(NAME)
        self._samples: dict[str, int] = {}

    def refused(self, facts: Facts, refusal: Refusal) -> None:
        """A request opens no session."""
        name = refusal.reason.name.lower()
        count = self.refusals[name] = self.refusals.get(name, 0) + 1
        if refusal.reason is Refused.VERSION_UNSUPPORTED and facts.version in _OLD:
            self.sampled("clients are refused: they are too old", address=facts.address, EIO=facts.version, cure=_NEWER)
        told = _TOLD.get(refusal.reason)
        if told is None or count & (count - 1):
            return
        origin = None if facts.origin is None else facts.origin[:ORIGIN_SHOWN]
        cure = _CURES[refusal.reason]
        self._log.warning(
            told, so_far=count, address=facts.address, origin=origin, transport=facts.transport, cure=cure
        )

    def sampled(self, event: str, **facts: Any) -> None:
        """A warning of which there may be many."""
        count = self._samples[event] = self._samples.get(event, 0) + 1
        if not count & (count - 1):
            self._log.warning(event, so_far=count, **facts)

    def too_large(self, size_max: int) -> None:
        """A client has sent more at once than it may: its connection ends, and the client is not told why."""
        cure = "send less at once, or the option payload_bytes_max"
        self.sampled("a client's message is too large: its connection ends", payload_bytes_max=size_max, cure=cure)

    def opened(self, sid: str, transport: str, address: str) -> None:
        """A session has begun."""
        if self._level.isEnabledFor(logging.DEBUG):
            self._log.debug("connected", session=sid[:SID_SHOWN], transport=transport, address=address)

    def ended(self, sid: str, reason: str) -> None:
        """A session has ended."""
        if self._level.isEnabledFor(logging.DEBUG):
            self._log.debug("disconnected", session=sid[:SID_SHOWN], reason=str(reason))
