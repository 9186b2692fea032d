"""SQL text cut into statements, as far as migrations need it. Pure: no input, no output.

The lexical rules are those of PostgreSQL's manual, 4.1: quoted strings and identifiers, ``E''`` strings with
backslashes, dollar quotes, line comments, nested block comments. ``BEGIN ATOMIC ... END`` bodies are kept whole.
Nothing else is understood beyond the words at a statement's start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["first_words", "split", "without_comments"]

_PIECE = re.compile(
    r"""
      (?P<line>--[^\n]*)
    | (?P<block>/\*)
    | (?P<escape>(?<![\w$])E'(?:[^'\\]|\\.|'')*(?:'|\Z))
    | (?P<string>'(?:[^']|'')*(?:'|\Z))
    | (?P<name>"(?:[^"]|"")*(?:"|\Z))
    | (?P<dollar>(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$)
    | (?P<end>;)
    | (?P<word>\b(?:BEGIN\s+ATOMIC|CASE|END)\b)  # BEGIN alone may be a column
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def _end_of_block(text: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def _pieces(text: str) -> Iterator[tuple[str, int, int]]:
    """``(kind, start, end)`` of everything that is not plain text; kinds: comment, quoted, end, word."""
    at = 0
    while found := _PIECE.search(text, at):
        start, at = found.span()
        if found["block"]:
            at = _end_of_block(text, start)
            yield "comment", start, at
        elif found["dollar"]:
            closing = text.find(found["dollar"], at)
            at = len(text) if closing < 0 else closing + len(found["dollar"])
            yield "quoted", start, at
        elif found["line"]:
            yield "comment", start, at
        elif found["word"]:
            yield "word", start, at
        else:
            yield ("end" if found["end"] else "quoted"), start, at


def split(text: str) -> list[str]:
    """The statements of ``text`` without their semicolons, comments kept, empty ones left out."""
    statements, start, depth = [], 0, 0
    for kind, begin, end in _pieces(text):
        if kind == "word":
            depth = _depth(text[begin:end].upper(), depth, text[start:begin])
        elif kind == "end" and depth == 0:
            statements.append(text[start:begin])
            start = end
    statements.append(text[start:])
    return [statement.strip() for statement in statements if without_comments(statement).strip()]


def _depth(word: str, depth: int, before: str) -> int:
    """How deep we are in the body of an SQL-standard routine after ``word``."""
    if word == "END":
        return max(0, depth - 1)
    if word == "CASE":
        return depth + 1 if depth else 0
    return depth + 1 if depth or first_words(before)[0] == "CREATE" else 0


def without_comments(text: str) -> str:
    """The same text with a space for every comment."""
    kept, at = [], 0
    for kind, begin, end in _pieces(text):
        if kind == "comment":
            kept += [text[at:begin], " "]
            at = end
    return "".join((*kept, text[at:]))


def first_words(statement: str) -> tuple[str, str]:
    """The first two words in capitals, "" where there is none: what kind of statement it is."""
    first, second, *_ = [*re.findall(r"\w+", without_comments(statement)[:200].upper())[:2], "", ""]
    return first, second
