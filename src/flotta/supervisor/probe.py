"""Asks the service over its own socket whether it is up, as any client would."""

from __future__ import annotations

import asyncio
import ssl
import urllib.parse

from flotta.supervisor.sockets import Listener

__all__ = ["answers"]

_EVERY_S = 0.2
_TIMEOUT_S = 5.0
_STATUS_BYTES_MAX = 1024


async def answers(listener: Listener, path: str, *, tls: bool) -> None:
    """Returns when ``GET path`` is answered with 2xx; asks every 0.2 s. Cancelling it is harmless."""
    while not await _once(listener, path, tls=tls):  # noqa: ASYNC110
        await asyncio.sleep(_EVERY_S)  # another process's state: nothing here could wake us


async def _once(listener: Listener, path: str, *, tls: bool) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await _connect(listener, tls=tls)
            try:
                request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(request.encode("ascii", errors="replace"))
                line = await reader.read(_STATUS_BYTES_MAX)
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return False
    return line.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))


async def _connect(listener: Listener, *, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False  # we ask ourselves: the certificate is for others
        context.verify_mode = ssl.CERT_NONE
    if listener.uds is not None:
        return await asyncio.open_unix_connection(listener.uds, ssl=context)
    host = urllib.parse.urlsplit(listener.url()).hostname
    return await asyncio.open_connection(host, listener.port, ssl=context)
