"""What Harbor refuses, in one form: ``{"error": {"code": ..., "message": ...}}`` and the fitting status."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flotta.errors import FlottaError, PoolFull, StreamFull

__all__ = ["Problem", "answer_http", "answer_invalid", "answer_problem", "answer_unavailable"]

RETRY_AFTER_S = 1


class Problem(Exception):
    """``status`` is HTTP's, ``code`` is for programs, ``message`` for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


def _answer(status: int, code: str, message: str) -> JSONResponse:
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else None
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def answer_problem(_request: Request, problem: Exception) -> JSONResponse:
    """The handler of `Problem`."""
    assert isinstance(problem, Problem)
    return _answer(problem.status, problem.code, problem.message)


def answer_http(_request: Request, error: Exception) -> JSONResponse:
    """The handler of what the framework refuses by itself: no such path, no such method."""
    assert isinstance(error, HTTPException)
    answer = _answer(error.status_code, HTTPStatus(error.status_code).name.lower(), str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def answer_invalid(_request: Request, _error: Exception) -> JSONResponse:
    """The handler of query parameters that cannot be read."""
    return _answer(422, "parameter_wrong", "A parameter of the query has a wrong form.")


def answer_unavailable(_request: Request, error: Exception) -> JSONResponse:
    """The handler of Flotta's errors: Redis or PostgreSQL could not do it now. Everything that Harbor offers may be
    repeated, so the answer is always the same: try again."""
    assert isinstance(error, FlottaError)
    code = "busy" if isinstance(error, StreamFull | PoolFull) else "unavailable"
    return _answer(503, code, "The service cannot do this at the moment. Please try again.")
