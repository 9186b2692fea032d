"""What may happen often is written into the log rarely: the 1st, 2nd, 4th, 8th... time, so that no flood floods it."""

from __future__ import annotations

from typing import Any, Final, final

from flotta.errors import WireError

__all__ = ["Junk", "is_told"]

CHANNEL_SHOWN: Final = 128


def is_told(count: int) -> bool:
    """Whether the ``count``-th of its kind is written; the first is number 1."""
    return not count & (count - 1)


@final
class Junk:
    """The messages that were none of ours, on the channels of one kind (``where``, as it is written)."""

    __slots__ = ("_log", "_where", "count")

    def __init__(self, where: str, logger: Any) -> None:
        self.count = 0
        self._where = where
        self._log = logger

    def add(self, channel: bytes, error: WireError) -> None:
        """One more. What it held is not written: it may be anything."""
        self.count += 1
        if is_told(self.count):
            reason = f"{error.what}: {error.reason}"
            self._log.warning(
                f"junk on {self._where} channel", channel=channel[:CHANNEL_SHOWN], reason=reason, so_far=self.count
            )
