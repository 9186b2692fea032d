"""What a worker writes to its supervisor, and who counts as loopback: no process, no network."""

from __future__ import annotations

import json
import os

import pytest

from flotta.server.gate import _is_loopback
from flotta.server.status import LINE_BYTES_MAX, StatusChannel


@pytest.mark.parametrize("text", ["x" * 10_000, "船" * 10_000, "\U0001f6a2\n" * 5_000], ids=["ascii", "bmp", "astral"])
def test_a_state_with_a_long_reason_is_one_whole_line_of_json(text: str) -> None:
    reader, writer = os.pipe()
    channel = StatusChannel(writer, lambda: None)
    channel.state("failed", reason=text, traceback=text, hopeless=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        line = pipe.read()
    told = json.loads(line)
    assert len(line) <= LINE_BYTES_MAX
    assert told["hopeless"] is True
    assert told["reason"].startswith(text[:20])


def test_a_supervisor_that_does_not_read_loses_no_state() -> None:
    reader, writer = os.pipe()
    channel = StatusChannel(writer, lambda: None)
    for _ in range(100_000 // LINE_BYTES_MAX * 2):
        channel.stats({"padding": "x" * (LINE_BYTES_MAX - 50)})
    channel.state("draining")
    channel.state("stopped", code=0)
    told = b""
    os.set_blocking(reader, False)
    for _ in range(2):
        while data := _read(reader):
            told += data
        channel.flush()
    os.close(writer)
    told += _read(reader)
    os.close(reader)
    states = [json.loads(line).get("state") for line in told.splitlines() if b"state" in line]
    assert states == ["draining", "stopped"]


def test_a_reader_that_is_gone_is_told_once() -> None:
    reader, writer = os.pipe()
    gone: list[bool] = []
    channel = StatusChannel(writer, lambda: gone.append(True))
    os.close(reader)
    channel.state("ready")
    channel.stats({"requests": 1})
    os.close(writer)
    assert gone == [True]


@pytest.mark.parametrize(
    ("client", "is_it"),
    [
        (None, True),  # a Unix socket
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("::ffff:10.0.0.1", 1), False),
        (("10.0.0.1", 1), False),
        (("testclient", 1), False),
    ],
)
def test_loopback(client: tuple[str, int] | None, is_it: bool) -> None:
    assert _is_loopback(client) is is_it


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""
