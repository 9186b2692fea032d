"""Quay on FastAPI: ``flotta run quay.on_fastapi:app -n 3``. Only what differs from Flask is here."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flotta.errors import FlottaError
from quay.bodies import BODY_BYTES_MAX, Credentials, Demo, Direct, NewMessage, NewRoom, NewUser, read_body
from quay.config import Config
from quay.page import HEADERS, page_file
from quay.parts import Quay
from quay.problem import Problem, problem_of

__all__ = ["app"]

T = TypeVar("T")

quay = Quay(Config.load(os.environ), framework="FastAPI")
accounts, rooms, messages, telling = quay.accounts, quay.rooms, quay.messages, quay.telling
api = FastAPI(title="Quay", lifespan=quay.fleet.lifespan, docs_url=None, redoc_url=None)
app = quay.server.app(api)  # Socket.IO under /socket.io, everything else goes to FastAPI


# --- what requests carry ---------------------------------------------------------------------------------------------


async def body(request: Request, kind: type[T]) -> T:
    """The request's body as a ``kind``; one that is too large is not read to its end."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY_BYTES_MAX:
            break
    return read_body(bytes(content), kind)


def address(request: Request) -> str:
    """Who asks, for counting attempts."""
    return request.client.host if request.client is not None else "local"


def signed_in(request: Request) -> int:
    """The id of the user whose token the request carries."""
    return accounts.bearer(request.headers.get("authorization"))


Me = Annotated[int, Depends(signed_in)]
Limit = Annotated[int, Query(ge=1, le=200)]
Number = Annotated[int | None, Query(ge=0, le=2**53)]


# --- accounts --------------------------------------------------------------------------------------------------------


@api.post("/api/users", status_code=201)
async def register(request: Request) -> Any:
    """Make a user and sign it in."""
    return await accounts.register(await body(request, NewUser), address(request))


@api.post("/api/session")
async def sign_in(request: Request) -> Any:
    """A token for a name and its password."""
    return await accounts.sign_in(await body(request, Credentials), address(request))


@api.post("/api/session/demo")
async def demo(request: Request) -> Any:
    """A token of a seeded user, in a demonstration."""
    return await accounts.demo(await body(request, Demo))


@api.post("/api/session/renew")
async def renew(request: Request, _me: Me) -> Any:
    """A fresh token for one that still holds."""
    return await accounts.renew(request.headers["authorization"].partition(" ")[2])


@api.get("/api/users")
async def users(_me: Me) -> Any:
    """Everybody."""
    return {"users": await accounts.users()}


# --- rooms and messages ----------------------------------------------------------------------------------------------


@api.get("/api/rooms")
async def list_rooms(me: Me) -> Any:
    """One's own rooms, and those that one could join."""
    return {"rooms": await rooms.of_user(me), "others": await rooms.others(me)}


@api.post("/api/rooms", status_code=201)
async def create_room(request: Request, me: Me) -> Any:
    """Open a room."""
    return await telling.create(me, await body(request, NewRoom))


@api.post("/api/direct")
async def direct(request: Request, me: Me) -> Any:
    """The room with one other user."""
    return await telling.direct(me, await body(request, Direct))


@api.get("/api/rooms/{room_id}/members")
async def members(room_id: int, me: Me) -> Any:
    """Who is in a room."""
    return {"members": await rooms.members(me, room_id)}


@api.post("/api/rooms/{room_id}/members")
async def join(room_id: int, me: Me) -> Any:
    """Join."""
    return await telling.join(me, room_id)


@api.delete("/api/rooms/{room_id}/members/me", status_code=204)
async def leave(room_id: int, me: Me) -> None:
    """Leave."""
    await telling.leave(me, room_id)


@api.get("/api/rooms/{room_id}/messages")
async def history(room_id: int, me: Me, before: Number = None, after: Number = None, limit: Limit = 50) -> Any:
    """The newest messages, those before a number, or those after one."""
    return await messages.history(me, room_id, before=before, after=after, limit=limit)


@api.post("/api/rooms/{room_id}/messages", status_code=201)
async def post(room_id: int, request: Request, me: Me) -> Any:
    """Say something: stored, told to everybody in the room on every instance."""
    return await telling.post(me, room_id, await body(request, NewMessage))


# --- the page --------------------------------------------------------------------------------------------------------


@api.get("/api/about")
async def about() -> Any:
    """What the page must know before anybody is signed in."""
    return {"framework": "FastAPI", "demo": await accounts.demo_users()}


@api.get("/{path:path}", include_in_schema=False)
async def page(path: str, request: Request) -> Response:
    """The page and its files."""
    file = page_file(path)
    known = request.headers.get("if-none-match") == file.headers["etag"]
    return Response(b"" if known else file.content, 304 if known else 200, headers=file.headers)


@api.middleware("http")
async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Every answer carries the security headers."""
    response = await call_next(request)
    response.headers.update(HEADERS)
    return response


async def refuse(_request: Request, error: Exception) -> Response:
    """What is refused, in Quay's form."""
    problem = problem_of(error)
    return JSONResponse(problem.body(), problem.status, headers=problem.headers())


async def refuse_parameter(_request: Request, error: Exception) -> Response:
    """A path or query that cannot be read."""
    assert isinstance(error, RequestValidationError)
    wrong = ", ".join(str(one["loc"][-1]) for one in error.errors())
    return await refuse(_request, Problem(422, "does_not_fit", f"Wrong in path or query: {wrong}."))


for kind in (Problem, FlottaError, HTTPException):
    api.add_exception_handler(kind, refuse)
api.add_exception_handler(RequestValidationError, refuse_parameter)
