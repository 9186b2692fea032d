"""What XINFO STREAM says, of old and of new servers: whether anything was ever taken out of the stream."""

from __future__ import annotations

from typing import Any

import pytest

from flotta.realtime.adapters.streams_wire import read_facts, read_loss

EVENT = [b"5-1", [b"uid", b"u", b"nsp", b"/", b"type", b"3", b"data", b"{}"]]
MARK = [b"5-1", [b"flotta", b"lost", b"read", b"4-7"]]


def facts(first: Any, **more: int) -> list[Any]:
    """As RESP2 has it; RESP3 has a map."""
    extra = [part for name, value in more.items() for part in (name.replace("_", "-").encode(), value)]
    return [b"length", 3, b"last-generated-id", b"9-0", *extra, b"first-entry", first]


@pytest.mark.parametrize("first", [EVENT, MARK])
@pytest.mark.parametrize("added", [3, 4])
def test_a_server_that_counts_says_whether_the_stream_is_whole_whatever_it_begins_with(first: Any, added: int) -> None:
    found = read_facts(facts(first, entries_added=added))
    assert (found.first, found.last, found.whole) == ((5, 1), (9, 0), added == 3)


def test_of_a_server_that_does_not_count_a_stream_is_whole_if_it_begins_with_the_mark_of_a_loss() -> None:
    assert not read_facts(facts(EVENT)).whole
    found = read_facts(facts(MARK))
    assert (found.whole, found.told) == (True, (4, 7))


def test_an_empty_stream_has_no_first_entry() -> None:
    found = read_facts(facts(None, entries_added=7))
    assert (found.first, found.told, found.whole) == (None, None, False)


@pytest.mark.parametrize("read", [[], [b"read", b"\xff"], [b"read", b"x"]])
def test_a_mark_that_does_not_say_how_far_its_writer_had_read_says_nothing(read: list[bytes]) -> None:
    fields = [b"flotta", b"lost", *read]
    assert read_loss(dict(zip(fields[::2], fields[1::2], strict=True))) == (0, 0)
    assert read_loss({b"flotta": b"begin"}) is None
