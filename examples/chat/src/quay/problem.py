"""What Quay refuses, in one form on HTTP and Socket.IO: ``{"error": {"code": ..., "message": ...}}``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, final

from flotta.errors import FlottaError

__all__ = ["RETRY_AFTER_S", "Problem", "problem_of"]

RETRY_AFTER_S = 1


@final
class Problem(Exception):
    """``status`` is HTTP's, ``code`` is for programs, ``message`` for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """As clients get it."""
        return {"error": {"code": self.code, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """What the HTTP answer carries besides."""
        return {"retry-after": str(RETRY_AFTER_S)} if self.status in {429, 503} else {}


def problem_of(error: Exception) -> Problem:
    """How ``error`` is told to a client: Flotta's errors mean that Redis or PostgreSQL could not do it now, and
    everything that Quay offers may be tried again. Frameworks' errors (no such path, ...) carry their status."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, FlottaError):
        return Problem(503, "unavailable", "This cannot be done at the moment. Please try again.")
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    known = HTTPStatus(status) if isinstance(status, int) else HTTPStatus.INTERNAL_SERVER_ERROR
    return Problem(known, known.name.lower(), f"{known.phrase}.")
