"""Opening a connection: TCP, TLS or Unix socket, then HELLO, AUTH, SELECT and PING as one write.

Owns: what a server must answer before a link uses it. Invariant: a connection that leaves here speaks RESP3, is
authenticated, has its database selected, and its server is new enough and ready for commands.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Callable
from typing import Any

from flotta._version import __version__
from flotta.errors import AmbiguousOutcome, CommandError, LinkUnavailable, NotApplied, Outcome, ServerTooOld
from flotta.redis.connection import Arg, Batch, Connection
from flotta.redis.endpoint import Endpoint

__all__ = ["Version", "open_connection", "parse_version"]

Version = tuple[int, int, int]
_REDIS_VERSION_MIN: Version = (6, 2, 0)


async def open_connection(
    endpoint: Endpoint, make: Callable[[], Connection], pack: Callable[..., bytes], *, timeout_s: float
) -> tuple[Connection, Version]:
    """A greeted connection and its server's version.

    Cancelling it closes the socket. Raises ``LinkUnavailable`` or ``ServerTooOld``.
    """
    connection = make()
    try:
        async with asyncio.timeout(timeout_s):
            await _open_socket(endpoint, connection)
            return connection, await _greet(endpoint, connection, pack)
    except TimeoutError:
        connection.end("no connection in time")
        raise LinkUnavailable(endpoint.address, f"no answer within {timeout_s:g} s") from None
    except ssl.SSLError as error:
        connection.end("TLS refused")
        raise LinkUnavailable(endpoint.address, f"TLS: {_tls_reason(error)}") from error
    except OSError as error:
        connection.end("no connection")
        raise LinkUnavailable(endpoint.address, _system_reason(error)) from error
    except (NotApplied, ServerTooOld):
        connection.end("greeting refused")
        raise
    except AmbiguousOutcome as error:
        raise LinkUnavailable(endpoint.address, error.reason) from error
    except asyncio.CancelledError:
        connection.end("cancelled")
        raise
    except Exception as error:  # a credential provider may raise anything; the link must go on trying
        connection.end("no connection")
        raise LinkUnavailable(endpoint.address, f"{type(error).__name__}: {error}") from error


async def _open_socket(endpoint: Endpoint, connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    if endpoint.path is not None:
        await loop.create_unix_connection(lambda: connection, endpoint.path)
    else:
        await loop.create_connection(lambda: connection, endpoint.host, endpoint.port, ssl=endpoint.tls)


async def _greet(endpoint: Endpoint, connection: Connection, pack: Callable[..., bytes]) -> Version:
    commands = _greeting(endpoint, await endpoint.login())
    if connection.ended is not None:
        raise LinkUnavailable(endpoint.address, connection.ended)
    future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    batch = Batch(future, len(commands))
    connection.send([pack(command) for command in commands], [batch] * len(commands), [c[0] for c in commands])
    try:
        replies = await future
    except AmbiguousOutcome:
        # "max number of clients", "protected mode": one error, then the server closes without reading on.
        if batch.replies and isinstance(batch.replies[0], CommandError):
            raise LinkUnavailable(endpoint.address, batch.replies[0].text) from None
        raise
    return _judge(endpoint, dict(zip([command[0] for command in commands], replies, strict=True)))


def _greeting(endpoint: Endpoint, login: tuple[str, str] | None) -> list[tuple[Arg, ...]]:
    hello: list[Arg] = ["HELLO", 3]
    if login is not None:
        hello += ["AUTH", *login]
    if endpoint.client_name is not None:
        hello += ["SETNAME", endpoint.client_name]
    commands: list[tuple[Arg, ...]] = [tuple(hello)]
    if endpoint.db:
        commands.append(("SELECT", endpoint.db))
    # Older servers refuse SETINFO; it is for CLIENT LIST only, so its answer is not looked at.
    commands.append(("CLIENT", "SETINFO", "LIB-NAME", "flotta"))
    commands.append(("CLIENT", "SETINFO", "LIB-VER", __version__))
    commands.append(("PING",))
    return commands


def _judge(endpoint: Endpoint, replies: dict[Any, Any]) -> Version:
    hello = replies["HELLO"]
    if isinstance(hello, CommandError):
        if "unknown command" in hello.text.lower():
            raise ServerTooOld("older than 6.0", "6.2")
        raise LinkUnavailable(endpoint.address, hello.text)
    version = parse_version(hello.get(b"version", b""))
    # A fork (Valkey) counts its own versions, all of them newer than Redis 7.
    if hello.get(b"server") == b"redis" and version < _REDIS_VERSION_MIN:
        raise ServerTooOld(".".join(map(str, version)), "6.2")
    selected = replies.get("SELECT")
    if isinstance(selected, CommandError):
        raise LinkUnavailable(endpoint.address, selected.text)
    ping = replies["PING"]
    if isinstance(ping, CommandError) and ping.outcome is Outcome.NOT_APPLIED:
        # LOADING, MASTERDOWN, BUSY: up, but refusing every command. Callers wait instead of getting this each.
        raise LinkUnavailable(endpoint.address, ping.text)
    return version


def parse_version(text: bytes | str) -> Version:
    """``7.2.4`` or ``7.2.4-rc1`` -> (7, 2, 4); what is missing is 0."""
    shown = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    numbers = [int(number) for number in re.findall(r"\d+", shown)[:3]]
    first, second, third, *_ = [*numbers, 0, 0, 0]
    return first, second, third


def _system_reason(error: OSError) -> str:
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return error.reason or str(error)
