"""Laws of cutting a child's bytes into lines."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from flotta.supervisor.output import LineSplitter, clean

_chunks = st.lists(st.binary(max_size=200), max_size=10)


def _lines(chunks: list[bytes], line_bytes_max: int = 16_384) -> list[str]:
    splitter = LineSplitter(line_bytes_max)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.flush()


@given(_chunks)
def test_where_the_reads_fall_changes_nothing(chunks: list[bytes]) -> None:
    assert _lines(chunks) == _lines([b"".join(chunks)])


@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))))
def test_valid_lines_come_back_as_they_were(lines: list[str]) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    assert _lines([data]) == lines


@given(st.text(alphabet="aé€😀", min_size=1, max_size=200), st.integers(4, 20))
def test_a_long_line_is_cut_between_characters_and_nothing_is_lost(text: str, line_bytes_max: int) -> None:
    pieces = _lines([text.encode()], line_bytes_max)
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= line_bytes_max for piece in pieces)


@given(st.binary(max_size=300), st.booleans())
def test_whatever_a_child_writes_the_terminal_is_safe(data: bytes, colour: bool) -> None:
    for line in _lines([data]):
        shown = clean(line, colour=colour)
        left = re.sub(r"\x1b\[[0-9;:]*m", "", shown) if colour else shown
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", left)
        shown.encode()


def test_colours_stay_and_are_closed_and_everything_else_goes() -> None:
    assert clean("\x1b[31mred", colour=True) == "\x1b[31mred\x1b[0m"
    assert clean("\x1b[31mred\x1b[0m", colour=False) == "red"
    assert clean("a\x1b[2Jb\x1b]0;title\x07c\x1b[1;1Hd\x1b7e", colour=True) == "abcde"


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    assert _lines([b"10%\r50%\r100%\n", b"windows\r\n"]) == ["100%", "windows"]
