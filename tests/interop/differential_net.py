"""HTTP requests and WebSocket frames as clients send them, with nothing in between that could mend them."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Answer", "frame", "request"]


class Answer(NamedTuple):
    """An HTTP response; status 0: the connection was broken off."""

    status: int
    headers: dict[str, str]
    body: bytes


async def request(
    port: int,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes = b"",
    on_sent: Callable[[], None] = lambda: None,
) -> Answer:
    """One HTTP request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        fields = {"Host": f"127.0.0.1:{port}", "Connection": "close", **headers}
        if body or method == "POST":
            fields["Content-Length"] = str(len(body))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items())
        writer.write(head.encode("latin-1") + b"\r\n" + body)
        on_sent()
        return _read_answer(await reader.read())
    except ConnectionError:
        return Answer(0, {}, b"")
    finally:
        writer.close()


def _read_answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0]:
        return Answer(0, {}, b"")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        chunks, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks, rest = chunks + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        body = chunks
    return Answer(int(lines[0].split(" ")[1]), headers, body)


def frame(opcode: int, payload: bytes, *, whole: bool = True) -> bytes:
    """A masked frame, as clients send them."""
    size = len(payload)
    first = opcode | (0x80 if whole else 0)
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if size < 65_536 else payload
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head, mask = struct.pack("!BBQ", first, 0x80 | 127, size), bytes(4)
    return head + mask + masked
