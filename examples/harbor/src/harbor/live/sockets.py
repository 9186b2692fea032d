"""Connections of pages: who they are, how long they may stay, what they may ask.

Invariants: a socket is in the room of its account and in no other; it is closed when its token ends, unless the page
has handed in a fresh one before.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, final

from flotta.errors import ConnectRefused
from flotta.fleet import Fleet
from flotta.realtime import Server
from harbor.accounts.sessions import Sessions
from harbor.live.broadcast import room_of
from harbor.problem import Problem
from harbor.status.board import Board

__all__ = ["Sockets"]

SWEEP_S = 1.0


@final
class Sockets:
    """The page connections of this instance."""

    def __init__(self, fleet: Fleet, server: Server, sessions: Sessions, board: Board) -> None:
        self._fleet = fleet
        self._server = server
        self._sessions = sessions
        self._board = board
        self._ends_s: dict[str, float] = {}
        self._accounts: dict[str, int] = {}
        server.on("connect", self._connect)
        server.on("disconnect", self._disconnect)
        server.on("renew", self._renew)
        server.on("status", self._answer_status)

    async def sweep(self) -> None:
        """Closes connections whose token has ended. Runs for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.time()
            for sid in [sid for sid, ends_s in self._ends_s.items() if ends_s <= now_s]:
                await self._server.disconnect(sid)

    async def _connect(self, sid: str, _environ: dict[str, Any], auth: Any) -> None:
        token = auth.get("token") if isinstance(auth, dict) else None
        if not isinstance(token, str):
            raise ConnectRefused("A session token is needed.")
        try:
            claims = self._sessions.claims(token)
        except Problem as problem:
            raise ConnectRefused(problem.message) from problem
        self._ends_s[sid] = claims.ends_s
        self._accounts[sid] = claims.account_id
        self._board.viewers = len(self._accounts)
        await self._server.enter_room(sid, room_of(claims.account_id))
        instance = self._fleet.instance
        await self._server.emit("hello", {"instance": instance.id, "pid": instance.pid}, to=sid)

    def _disconnect(self, sid: str, _reason: str) -> None:
        self._ends_s.pop(sid, None)
        self._accounts.pop(sid, None)
        self._board.viewers = len(self._accounts)

    def _renew(self, sid: str, token: object) -> bool:
        """A fresh token of the same account lets the connection stay."""
        try:
            claims = self._sessions.claims(token if isinstance(token, str) else "")
        except Problem:
            return False
        if self._accounts.get(sid) != claims.account_id:
            return False
        self._ends_s[sid] = claims.ends_s
        return True

    async def _answer_status(self, _sid: str) -> Any:
        return await self._board.status()
