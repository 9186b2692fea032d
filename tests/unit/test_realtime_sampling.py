"""What floods is written rarely."""

from __future__ import annotations

from typing import Any

from flotta.errors import WireError
from flotta.realtime.sampling import Junk, is_told


class _Log:
    def __init__(self) -> None:
        self.written: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **facts: Any) -> None:
        self.written.append((event, facts))


def test_the_first_and_every_doubling_is_told() -> None:
    assert [count for count in range(1, 70) if is_told(count)] == [1, 2, 4, 8, 16, 32, 64]


def test_a_flood_of_junk_is_counted_whole_and_written_rarely_without_what_it_held() -> None:
    log = _Log()
    junk = Junk("a relay", log)
    for _ in range(1000):
        junk.add(b"c" * 500, WireError("relay message", "truncated", b"secret"))
    assert junk.count == 1000
    assert [facts["so_far"] for _, facts in log.written] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    event, facts = log.written[0]
    assert event == "junk on a relay channel"
    assert facts == {"channel": b"c" * 128, "reason": "relay message: truncated", "so_far": 1}
