"""From the bytes that a child writes to lines that are safe to show. Pure: no file, no terminal, no clock.

Invariants: a line comes out whole or is cut at ``line_bytes_max`` between two characters; whatever the bytes, the text
is valid and holds no control sequence that could move the cursor, clear the screen or retitle the window (colours may
stay). What a child prints is data from outside: it may carry what a client sent.
"""

from __future__ import annotations

import re
from typing import final

__all__ = ["LINE_BYTES_MAX", "LineSplitter", "clean"]

LINE_BYTES_MAX = 16 * 1024

# CSI (ECMA-48 5.4), OSC and the other strings up to BEL or ST, then two-character escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])")
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f\x80-\x9f]|\x1b(?!\[[0-9;:]*m)")
_RESET = "\x1b[0m"


def clean(text: str, *, colour: bool) -> str:
    """``text`` without what would harm a terminal; with ``colour`` the colours stay and are closed at its end."""
    coloured = False

    def keep(match: re.Match[str]) -> str:
        nonlocal coloured
        if not (colour and _COLOUR.match(match[0])):
            return ""
        coloured = True
        return match[0]

    shown = _CONTROL.sub("", _ESCAPE.sub(keep, text)).expandtabs(8)
    return shown + _RESET if coloured and not shown.endswith((_RESET, "\x1b[m")) else shown


@final
class LineSplitter:
    """Cuts a stream of bytes into lines of text.

    ``feed`` returns the lines that are complete; ``flush`` returns what is left (call it when the stream has ended or
    has been silent for a while). Invalid UTF-8 becomes U+FFFD. Of a line that was overwritten by carriage returns (a
    progress bar) the last state is kept.
    """

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        if line_bytes_max < 4:
            raise ValueError("line_bytes_max: at least 4, the longest UTF-8 character")
        self._max = line_bytes_max
        self._rest = b""

    @property
    def partial(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [text for line in whole for text in self._cut(line)]
        if len(self._rest) > self._max:
            pieces = list(self._pieces(self._rest))
            self._rest = pieces.pop()
            lines += [_text(piece) for piece in pieces]
        return lines

    def flush(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return self._cut(rest) if rest else []

    def _cut(self, line: bytes) -> list[str]:
        if line.endswith(b"\r"):
            line = line[:-1]
        return [_text(piece) for piece in self._pieces(line.rpartition(b"\r")[2])]

    def _pieces(self, line: bytes) -> list[bytes]:
        pieces = []
        while len(line) > self._max:
            at = self._max
            while at > self._max - 4 and line[at] & 0xC0 == 0x80:  # RFC 3629 3: 10xxxxxx continues a character
                at -= 1
            pieces.append(line[:at])
            line = line[at:]
        return [*pieces, line]


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
