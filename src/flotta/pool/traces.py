"""What is shown of an exception that a user's function raised: where that was, without the pool's frames above it.

Owns no state. Invariant: an error is never left without a place, even if all its frames are the pool's own.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["describe_place", "exc_info_of", "format_trace"]

_LIBRARY: Final = str(Path(__file__).parents[1])


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """``error`` for a logger's ``exc_info``, from the first frame that is not the library's on."""
    return type(error), error, _from_user(error.__traceback__)


def format_trace(error: BaseException) -> str:
    """As Python prints it, from the first frame that is not the library's on."""
    return "".join(traceback.format_exception(*exc_info_of(error)))


def describe_place(error: BaseException) -> str:
    """The innermost frame that is not the library's, in one line: a whole traceback costs more than most failures."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    own = [found for found in frames if not _is_library(found[0].f_code.co_filename)]
    frame, line = (own or frames)[-1]
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _from_user(trace: TracebackType | None) -> TracebackType | None:
    found = trace
    while found is not None and _is_library(found.tb_frame.f_code.co_filename):
        found = found.tb_next
    return found or trace


def _is_library(filename: str) -> bool:
    return filename.startswith(_LIBRARY)
