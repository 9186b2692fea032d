"""Quay on Flask: ``flotta run quay.on_flask:app -n 3``. Only what differs from FastAPI is here.

Views run in threads. ``fleet.sync.of(part)`` is a part with every ``await`` done: its methods run in the event loop of
the same worker, where the Socket.IO server is, so a view that posts a message reaches sockets on every instance.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from flotta.errors import FlottaError
from quay.bodies import BODY_BYTES_MAX, Credentials, Demo, Direct, NewMessage, NewRoom, NewUser, read_body
from quay.config import Config
from quay.page import HEADERS, page_file
from quay.parts import Quay
from quay.problem import Problem, problem_of

__all__ = ["app"]

T = TypeVar("T")

quay = Quay(Config.load(os.environ), framework="Flask")
in_loop = quay.fleet.sync.of
accounts, rooms, messages, telling = map(in_loop, (quay.accounts, quay.rooms, quay.messages, quay.telling))
app = Flask("quay", static_folder=None)  # under flotta run, Socket.IO is served in front of it
app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES_MAX


# --- what requests carry ---------------------------------------------------------------------------------------------


def body(kind: type[T]) -> T:
    """The request's body as a ``kind``."""
    return read_body(request.get_data(), kind)


def address() -> str:
    """Who asks, for counting attempts."""
    return request.remote_addr or "local"


def me() -> int:
    """The id of the user whose token the request carries."""
    return quay.accounts.bearer(request.headers.get("authorization"))


def number(name: str, *, least: int, most: int, default: int | None = None) -> int | None:
    """A number of the query."""
    text = request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise Problem(422, "does_not_fit", f"Wrong in path or query: {name}.")
    return int(text)


# --- accounts --------------------------------------------------------------------------------------------------------


@app.post("/api/users")
def register() -> Any:
    """Make a user and sign it in."""
    return accounts.register(body(NewUser), address()), 201


@app.post("/api/session")
def sign_in() -> Any:
    """A token for a name and its password."""
    return accounts.sign_in(body(Credentials), address())


@app.post("/api/session/demo")
def demo() -> Any:
    """A token of a seeded user, in a demonstration."""
    return accounts.demo(body(Demo))


@app.post("/api/session/renew")
def renew() -> Any:
    """A fresh token for one that still holds."""
    me()
    return accounts.renew(request.headers["authorization"].partition(" ")[2])


@app.get("/api/users")
def users() -> Any:
    """Everybody."""
    me()
    return {"users": accounts.users()}


# --- rooms and messages ----------------------------------------------------------------------------------------------


@app.get("/api/rooms")
def list_rooms() -> Any:
    """One's own rooms, and those that one could join."""
    user_id = me()
    return {"rooms": rooms.of_user(user_id), "others": rooms.others(user_id)}


@app.post("/api/rooms")
def create_room() -> Any:
    """Open a room."""
    return telling.create(me(), body(NewRoom)), 201


@app.post("/api/direct")
def direct() -> Any:
    """The room with one other user."""
    return telling.direct(me(), body(Direct))


@app.get("/api/rooms/<int:room_id>/members")
def members(room_id: int) -> Any:
    """Who is in a room."""
    return {"members": rooms.members(me(), room_id)}


@app.post("/api/rooms/<int:room_id>/members")
def join(room_id: int) -> Any:
    """Join."""
    return telling.join(me(), room_id)


@app.delete("/api/rooms/<int:room_id>/members/me")
def leave(room_id: int) -> Any:
    """Leave."""
    telling.leave(me(), room_id)
    return "", 204


@app.get("/api/rooms/<int:room_id>/messages")
def history(room_id: int) -> Any:
    """The newest messages, those before a number, or those after one."""
    before, after = number("before", least=0, most=2**53), number("after", least=0, most=2**53)
    limit = number("limit", least=1, most=200, default=50)
    return messages.history(me(), room_id, before=before, after=after, limit=limit)


@app.post("/api/rooms/<int:room_id>/messages")
def post(room_id: int) -> Any:
    """Say something: stored, told to everybody in the room on every instance."""
    return telling.post(me(), room_id, body(NewMessage)), 201


# --- the page --------------------------------------------------------------------------------------------------------


@app.get("/api/about")
def about() -> Any:
    """What the page must know before anybody is signed in."""
    return {"framework": "Flask", "demo": accounts.demo_users()}


@app.get("/", defaults={"path": ""})
@app.get("/<path:path>")
def page(path: str) -> Response:
    """The page and its files."""
    file = page_file(path)
    known = request.headers.get("if-none-match") == file.headers["etag"]
    return Response(b"" if known else file.content, 304 if known else 200, headers=file.headers)


@app.after_request
def add_headers(response: Response) -> Response:
    """Every answer carries the security headers."""
    response.headers.update(HEADERS)
    return response


@app.errorhandler(Problem)
@app.errorhandler(FlottaError)
@app.errorhandler(HTTPException)
def refuse(error: Exception) -> Any:
    """What is refused, in Quay's form."""
    problem = problem_of(error)
    return problem.body(), problem.status, problem.headers()
