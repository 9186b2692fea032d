"""The rules of the handshake: who may open a session, and what a refusal looks like.

The order of the checks is the protocol's (version and transport first), then the house's: capacity before origin would
tell a stranger how full the server is, so the origin comes first.

A refusal is an HTTP status and the JSON body ``{"code":n,"message":"..."}`` that Engine.IO clients understand.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection
from enum import Enum
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from flotta.realtime.engineio.packet import PROTOCOL_VERSION

__all__ = [
    "INSTANCE_LENGTH",
    "SID_LENGTH",
    "Facts",
    "Refusal",
    "Refused",
    "check",
    "check_session",
    "origin_allowed",
    "session_id",
]

SID_LENGTH: Final = 20
INSTANCE_LENGTH: Final = 4
ENTROPY_BYTES: Final = 12  # 16 characters of base64

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Refused(Enum):
    """Why no session is opened: (HTTP status, Engine.IO code, message)."""

    TRANSPORT_UNKNOWN = (400, 0, "Transport unknown")
    SESSION_UNKNOWN = (400, 1, "Session ID unknown")
    BAD_METHOD = (400, 2, "Bad handshake method")
    BAD_REQUEST = (400, 3, "Bad request")
    FORBIDDEN = (403, 4, "Forbidden")
    VERSION_UNSUPPORTED = (400, 5, "Unsupported protocol version")
    NO_WEBSOCKET = (426, 3, "Bad WebSocket handshake")
    CROWDED = (429, 4, "Too many connections from this address")
    AT_CAPACITY = (503, 4, "Server at capacity")
    NOT_STARTED = (503, 4, "Server has not started")
    DRAINING = (503, 4, "Server is draining")
    OUT_OF_REACH = (503, 4, "The instance that holds this session cannot be reached")


class Refusal(NamedTuple):
    """An answer that opens no session."""

    reason: Refused

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.reason.value[0]

    @property
    def message(self) -> str:
        """The sentence for people."""
        return self.reason.value[2]

    @property
    def body(self) -> bytes:
        """The JSON body."""
        _, code, message = self.reason.value
        return json.dumps({"code": code, "message": message}, separators=(",", ":")).encode()


class Facts(NamedTuple):
    """What the handshake's rules need to know of a request."""

    method: str
    upgrade: bool
    """The request asks for a WebSocket."""
    version: str
    """``EIO`` of the query."""
    transport: str
    sid: str
    origin: str | None
    host: str
    """The ``Host`` header."""
    secure: bool = False
    """The request came over TLS, as far as this side knows: a proxy may have ended it."""
    address: str = ""
    """Where it came from; what a trusted proxy says, if there is one."""


def session_id(instance: str, entropy: bytes) -> str:
    """An id of 20 characters: 4 name the instance that holds the session, 16 carry 96 random bits."""
    assert len(instance) == INSTANCE_LENGTH
    assert len(entropy) == ENTROPY_BYTES
    return instance + base64.urlsafe_b64encode(entropy).decode("ascii")


def check(
    facts: Facts,
    *,
    transports: Collection[str],
    origins: Collection[str],
    draining: bool,
    full: bool,
    crowded: bool = False,
    started: bool = True,
) -> Refusal | None:
    """None if the request may open a session, else why not."""
    return _first(
        *_general(facts, transports, origins),
        (facts.method != "GET", Refused.BAD_METHOD),
        (not started, Refused.NOT_STARTED),
        (draining, Refused.DRAINING),
        (crowded, Refused.CROWDED),
        (full, Refused.AT_CAPACITY),
    )


def check_session(
    facts: Facts, *, transports: Collection[str], origins: Collection[str], current: str | None
) -> Refusal | None:
    """None if the request may go on with a session whose transport is ``current`` (None: there is no such session).

    A second WebSocket of a session passes here and is closed once it is open: so does the reference implementation.
    """
    return _first(
        *_general(facts, transports, origins),
        (current is None, Refused.SESSION_UNKNOWN),
        (current != "polling" and not facts.upgrade, Refused.BAD_REQUEST),
        (facts.method not in {"GET", "POST"}, Refused.BAD_METHOD),
    )


_Rule: TypeAlias = tuple[bool, Refused]


def _general(facts: Facts, transports: Collection[str], origins: Collection[str]) -> tuple[_Rule, ...]:
    return (
        (facts.version != PROTOCOL_VERSION, Refused.VERSION_UNSUPPORTED),
        (facts.transport not in transports, Refused.TRANSPORT_UNKNOWN),
        ((facts.transport == "websocket") != facts.upgrade, Refused.BAD_REQUEST),
        (not origin_allowed(facts, origins), Refused.FORBIDDEN),
    )


def _first(*rules: _Rule) -> Refusal | None:
    return next((Refusal(reason) for broken, reason in rules if broken), None)


def origin_allowed(facts: Facts, origins: Collection[str]) -> bool:
    """Whether the page may connect: its origin is listed, or it is this host itself (same port; over TLS only https).

    A request without ``Origin`` comes from no browser and passes: the header protects browsers' users from foreign
    pages, and a program can send what it likes. ``null`` (sandboxed frames, files) passes only if it is listed.
    """
    origin = facts.origin
    if origin is None or "*" in origins or origin in origins:
        return True
    try:
        theirs = urlsplit(origin)
        port = theirs.port
        ours = urlsplit(f"//{facts.host}")
        our_port = ours.port
    except ValueError:
        return False
    default = _DEFAULT_PORTS.get(theirs.scheme)
    if default is None or theirs.hostname is None or theirs.path or theirs.query or theirs.username is not None:
        return False
    if facts.secure and theirs.scheme != "https":
        return False  # a page that anyone on the way could have written
    return theirs.hostname == ours.hostname and (port or default) == (our_port or default)
