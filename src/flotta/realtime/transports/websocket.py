"""WebSocket frames (RFC 6455) on the server's side: written whole, read incrementally. No I/O.

What the reader holds is bounded: a frame whose header announces more than the limit ends the connection before its
payload is read. Extensions are never negotiated, so any reserved bit is a fault.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable
from typing import Final, TypeAlias, final

from flotta.errors import PacketError

__all__ = [
    "OP_BINARY",
    "OP_CLOSE",
    "OP_PING",
    "OP_PONG",
    "OP_TEXT",
    "FrameReader",
    "WebSocketError",
    "accept_key",
    "close_frame",
    "frame",
    "read_close",
]

OP_CONTINUATION: Final = 0x0
OP_TEXT: Final = 0x1
OP_BINARY: Final = 0x2
OP_CLOSE: Final = 0x8
OP_PING: Final = 0x9
OP_PONG: Final = 0xA

CONTROL_BYTES_MAX: Final = 125
FIN: Final = 0x80
MASK: Final = 0x80
PROTOCOL_ERROR: Final = 1002
INVALID_DATA: Final = 1007
TOO_BIG: Final = 1009

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OPCODES: Final = frozenset({OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG})
# RFC 6455 7.4.1: codes that may stand in a close frame, besides 3000-4999.
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})

Message: TypeAlias = tuple[int, str | bytes]
"""(opcode, payload): text as str, everything else as bytes."""

_Unmask: TypeAlias = Callable[[bytes, bytes], bytes]


def _unmask_slowly(data: bytes, mask: bytes) -> bytes:
    """Exclusive or of the whole payload as one big integer: the fastest that the language alone can do."""
    size = len(data)
    stretched = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(stretched, "little")).to_bytes(size, "little")


def _find_unmask() -> _Unmask:
    try:
        from websockets.speedups import apply_mask  # noqa: PLC0415 - optional
    except ImportError:
        return _unmask_slowly
    return apply_mask


_unmask = _find_unmask()


class WebSocketError(PacketError):
    """The peer broke RFC 6455 or a limit: close with ``code``."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__("WebSocket frame", reason)


def accept_key(key: str) -> str:
    """``Sec-WebSocket-Accept`` for a client's ``Sec-WebSocket-Key``."""
    # RFC 6455 4.2.2: SHA-1 is asked for by the protocol and protects nothing.
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked frame, as servers send them."""
    size = len(payload)
    if size < 126:
        return bytes((FIN | opcode, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", FIN | opcode, 126, size) + payload
    return struct.pack("!BBQ", FIN | opcode, 127, size) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut to what a control frame may carry."""
    text = reason.encode()[: CONTROL_BYTES_MAX - 2].decode(errors="ignore").encode()
    return frame(OP_CLOSE, struct.pack("!H", code) + text)


def read_close(payload: bytes) -> int:
    """The code of a close frame's payload, 1005 if it carries none. Raises WebSocketError."""
    if not payload:
        return 1005
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in _CLOSE_CODES or 3000 <= code <= 4999):
        raise WebSocketError(PROTOCOL_ERROR, "bad close code")
    _text(payload[2:])
    return code


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise WebSocketError(INVALID_DATA, "text is not UTF-8") from error


@final
class FrameReader:
    """Turns a client's bytes into messages and control frames: `feed` it, then `take` until there is none.

    One at a time, so that whoever stops taking holds the bytes and not the many objects that they stand for, and so
    that what came before a broken frame is still delivered.
    """

    __slots__ = ("_at", "_data", "_fragments", "_fragments_bytes", "_fragments_opcode", "_held", "_needed", "_size_max")

    def __init__(self, payload_bytes_max: int) -> None:
        self._size_max = payload_bytes_max
        self._data = b""  # not read yet, from `_at` on
        self._at = 0
        self._held: bytearray | None = None  # the start of a frame, until `_needed` bytes are there
        self._needed = 0
        self._fragments: list[bytes] | None = None
        self._fragments_bytes = 0
        self._fragments_opcode = 0

    def feed(self, data: bytes) -> None:
        """Add what the socket gave."""
        if self._held is not None:
            self._held += data
        elif self._at < len(self._data):
            self._data, self._at = self._data[self._at :] + data, 0
        else:
            self._data, self._at = data, 0

    def take(self) -> Message | None:
        """The next message that is whole. Raises WebSocketError, then the reader is used up."""
        if self._held is not None:
            if len(self._held) < self._needed:
                return None
            self._data, self._at, self._held = bytes(self._held), 0, None
        data, size = self._data, len(self._data)
        while size - self._at >= 2:
            at = self._at
            start, length = self._header(data, at, size)
            if size < start + length:
                self._hold(start + length - at)
                return None
            self._at = start + length
            message = self._frame(data[at], _unmask(data[start : self._at], data[start - 4 : start]))
            if message is not None:
                return message
        if self._at < size:
            self._hold(2)
        return None

    def _hold(self, needed: int) -> None:
        self._held, self._needed = bytearray(self._data[self._at :]), needed
        self._data, self._at = b"", 0

    def _header(self, data: bytes, at: int, size: int) -> tuple[int, int]:
        """Where the payload starts and how long it is (0 while the header itself is not whole)."""
        first, second = data[at], data[at + 1]
        opcode = first & 0x0F
        if first & 0x70 or opcode not in _OPCODES:
            raise WebSocketError(PROTOCOL_ERROR, "reserved bits or opcode")
        if not second & MASK:
            raise WebSocketError(PROTOCOL_ERROR, "a client's frame must be masked")
        length = second & 0x7F
        if opcode & 0x08 and (length > CONTROL_BYTES_MAX or not first & FIN):
            raise WebSocketError(PROTOCOL_ERROR, "a control frame is short and whole")
        extra = {126: 2, 127: 8}.get(length, 0) if length > CONTROL_BYTES_MAX else 0
        start = at + 2 + extra + 4
        if size < start:
            return start, 0
        if extra:
            length = int.from_bytes(data[at + 2 : at + 2 + extra], "big")
        held = 0 if opcode & 0x08 else self._fragments_bytes
        if held + length > self._size_max and not opcode & 0x08:
            raise WebSocketError(TOO_BIG, f"more than {self._size_max} bytes")
        return start, length

    def _frame(self, first: int, payload: bytes) -> Message | None:
        opcode, whole = first & 0x0F, first & FIN
        if opcode & 0x08:
            return opcode, payload
        if opcode == OP_CONTINUATION:
            return self._continue(payload, whole=bool(whole))
        if self._fragments is not None:
            raise WebSocketError(PROTOCOL_ERROR, "a new message inside a fragmented one")
        if whole:
            return opcode, (_text(payload) if opcode == OP_TEXT else payload)
        self._fragments, self._fragments_bytes, self._fragments_opcode = [payload], len(payload), opcode
        return None

    def _continue(self, payload: bytes, *, whole: bool) -> Message | None:
        if self._fragments is None:
            raise WebSocketError(PROTOCOL_ERROR, "a continuation of nothing")
        self._fragments.append(payload)
        # An empty fragment costs memory too: count each as at least 64 bytes, so that a flood of them meets the limit.
        self._fragments_bytes += max(len(payload), 64)
        if not whole:
            return None
        joined = b"".join(self._fragments)
        self._fragments, self._fragments_bytes = None, 0
        return self._fragments_opcode, (_text(joined) if self._fragments_opcode == OP_TEXT else joined)
