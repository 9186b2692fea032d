"""How a link behaves: every limit and time of it, with its default.

Owns: the checks. An option that would make a wait unbounded or a limit meaningless stops at birth, not at the first
fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from flotta.errors import ConfigError

__all__ = ["LinkOptions"]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LinkOptions:
    """Times in seconds, limits in commands.

    Raises ``ConfigError`` at birth if a value makes no sense.
    """

    command_timeout_s: float = 5.0
    """The most that one command waits: for a connection and a place first, then (anew) for its reply."""
    connect_timeout_s: float = 5.0
    """The most that one attempt takes: name lookup, TCP, TLS and the greeting together."""
    in_flight_max: int = 20_000
    """Commands written whose replies are due. Later ones wait (back-pressure); a batch is never split."""
    waiting_max: int = 200_000
    """Commands that wait for a connection or a place. The next one raises ``LinkBusy`` at once."""
    reconnect_min_s: float = 0.05
    """The pause before the second attempt. Each pause is twice the one before, less a random part of up to a half."""
    reconnect_max_s: float = 2.0
    """The longest pause between attempts."""
    heartbeat_s: float = 5.0
    """A connection on which nothing arrived for so long gets a PING; no answer for as long again ends it."""
    client_name: str | None = None
    """Shown by CLIENT LIST; no spaces. None: none is set."""
    retries: int = 3
    """How often ``client.Redis`` and ``Script`` repeat what is safe to repeat. 0: never."""
    retry_delay_s: float = 0.1
    """The pause before each repeat."""

    def __post_init__(self) -> None:
        for name in ("command_timeout_s", "connect_timeout_s", "reconnect_min_s", "reconnect_max_s", "heartbeat_s"):
            self._require(name, lambda value: 0 < value < math.inf, "a finite number of seconds above 0")
        for name in ("in_flight_max", "waiting_max"):
            self._require(name, lambda value: isinstance(value, int) and value >= 1, "a whole number from 1 on")
        self._require("retries", lambda value: isinstance(value, int) and value >= 0, "a whole number from 0 on")
        self._require("retry_delay_s", lambda value: 0 <= value < math.inf, "a finite number of seconds from 0 on")
        self._require("reconnect_max_s", lambda value: value >= self.reconnect_min_s, "reconnect_min_s or more")
        if self.client_name is not None and not _is_client_name(self.client_name):
            raise ConfigError("client_name", self.client_name, "printable ASCII without spaces", source="LinkOptions")

    def _require(self, name: str, is_right: Callable[[Any], bool], allowed: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_right(value):
            raise ConfigError(name, value, allowed, source="LinkOptions")


def _is_client_name(name: str) -> bool:
    # CLIENT SETNAME refuses everything outside "!" to "~".
    return bool(name) and all("!" <= char <= "~" for char in name)
