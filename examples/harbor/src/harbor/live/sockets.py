"""Connections of pages: who they are, how long they may stay, what they may ask.

Invariants: a socket has one user, its account, and gets what is sent to that and nothing else; it is closed when its
token ends, unless the page has handed in a fresh one before. All of this is asked again of a page that comes back, also
if the service remembers its session.
"""

from __future__ import annotations

from typing import Any, final

from flotta.errors import ConnectRefused
from flotta.fleet import Fleet
from flotta.realtime import Server
from harbor.accounts.sessions import Sessions
from harbor.live.broadcast import user_of
from harbor.problem import Problem
from harbor.status.board import Board

__all__ = ["Sockets"]


@final
class Sockets:
    """The page connections of this instance."""

    def __init__(self, fleet: Fleet, server: Server, sessions: Sessions, board: Board) -> None:
        self._fleet = fleet
        self._server = server
        self._sessions = sessions
        self._board = board
        server.on("connect", self._connect)
        server.on("renew", self._renew)
        server.on("status", self._answer_status)

    async def _connect(self, sid: str, _environ: dict[str, Any], auth: Any) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        if not isinstance(token, str):
            raise ConnectRefused("A session token is needed.")
        try:
            claims = self._sessions.claims(token)
        except Problem as problem:
            raise ConnectRefused(problem.message) from problem
        user = user_of(claims.account_id)
        await self._server.set_user(sid, user, expires_at=claims.ends_s, issued_at=claims.signed_in_s)
        # Local: it is true of this connection, and must not be told again to one that comes back elsewhere.
        instance = self._fleet.instance
        await self._server.emit("hello", {"instance": instance.id, "pid": instance.pid}, to=sid, local=True)

    async def _renew(self, sid: str, token: object) -> bool:
        """A fresh token of the same account lets the connection stay."""
        try:
            claims = self._sessions.claims(token if isinstance(token, str) else "")
        except Problem:
            return False
        if self._server.user_of(sid) != user_of(claims.account_id):
            return False
        return await self._server.extend(sid, claims.ends_s)

    async def _answer_status(self, _sid: str) -> Any:
        return await self._board.status()
