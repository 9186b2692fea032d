"""Errors that are both Flotta's and redis-py's: who catches either, catches them.

Owns: the mapping from what a link raises to what the users of redis-py expect. Invariant: each class inherits the
Flotta error with all its facts, and the redis-py exception that redis-py itself would raise for the same event.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from redis import exceptions
from redis._parsers.base import BaseParser

from flotta.errors import AmbiguousOutcome, Closed, CommandError, LinkBusy, LinkUnavailable, RedisError

__all__ = ["DriverClosed", "to_driver_error", "within_reply"]


class DriverLinkUnavailable(LinkUnavailable, exceptions.ConnectionError):
    """No connection in time; never written."""


class DriverLinkBusy(LinkBusy, exceptions.ConnectionError):
    """Too many commands in flight; never written."""


class DriverClosed(Closed, exceptions.ConnectionError):
    """The client was closed."""


class DriverAmbiguousOutcome(AmbiguousOutcome, exceptions.ConnectionError):
    """Written, reply lost; it may have run."""


class DriverAmbiguousTimeout(AmbiguousOutcome, exceptions.TimeoutError):
    """Written, no reply in time; it may have run."""


def to_driver_error(error: RedisError) -> RedisError:
    """The same failure as ``error``, also an exception of redis-py; one that already is comes back as it is."""
    if isinstance(error, exceptions.RedisError):
        return error
    match error:
        case CommandError():
            return _command_error(error)
        case LinkUnavailable():
            made: RedisError = DriverLinkUnavailable(error.address, error.reason, command=error.command)
        case LinkBusy():
            made = DriverLinkBusy(error.in_flight, error.waited_s, command=error.command)
        case AmbiguousOutcome():
            timed_out = error.reason.startswith("no reply within")
            kind = DriverAmbiguousTimeout if timed_out else DriverAmbiguousOutcome
            made = kind(error.reason, command=error.command)
        case _:
            return error
    return made


def within_reply(reply: Any) -> Any:
    """Error replies inside an array (EXEC) become redis-py's too; everything else is returned as it is."""
    if isinstance(reply, CommandError):
        return to_driver_error(reply)
    if isinstance(reply, list) and any(isinstance(item, CommandError) for item in reply):
        return [within_reply(item) for item in reply]
    return reply


def _parse(text: str) -> Exception:
    try:
        return cast("Exception", BaseParser.parse_error(text))  # type: ignore[no-untyped-call]
    except (ValueError, IndexError):
        return exceptions.ResponseError(text)


def _command_error(error: CommandError) -> CommandError:
    driver_error = _parse(error.text)
    made = _both(cast("Any", type(driver_error)))(error.text, command=error.command, outcome=error.outcome)
    # People match on redis-py's sentence ("BUSYGROUP ..."); the command is in ``command``.
    made.args = driver_error.args
    return made


@cache
def _both(driver_class: type[Any]) -> type[CommandError]:
    if issubclass(driver_class, exceptions.AskError):
        driver_class = exceptions.ResponseError  # those two parse a cluster's address out of their only argument
    return type(f"Driver{driver_class.__name__}", (CommandError, driver_class), {"__doc__": CommandError.__doc__})
