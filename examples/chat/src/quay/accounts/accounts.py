"""Users in PostgreSQL: registering, signing in, renewing a token, and who a token stands for."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any, TypedDict, final

import psycopg

from flotta.fleet import Fleet
from flotta.rmap.recipes import RateLimit
from quay.accounts.passwords import hash_password, is_password
from quay.accounts.tokens import Claims, TokenError, read_token, sign_token
from quay.bodies import Credentials, Demo, NewUser
from quay.config import Config
from quay.problem import Problem

__all__ = ["Accounts", "Session", "User", "milliseconds"]

_ATTEMPTS_PER_MINUTE = 10
_INSERT = "INSERT INTO users (name, display, password_hash) VALUES (%s, %s, %s) RETURNING id, name, display"
_BY_NAME = "SELECT id, name, display, demo, password_hash FROM users WHERE name = %s"
_BY_ID = "SELECT id, name, display FROM users WHERE id = %s"
_ALL = "SELECT id, name, display, last_seen_at FROM users ORDER BY display, id LIMIT %s"
_DEMO = "SELECT id, name, display FROM users WHERE demo ORDER BY id"
_SEEN = "UPDATE users SET last_seen_at = now() WHERE id = %s"
_LISTED_MAX = 500


class User(TypedDict):
    """A user as everybody may see it."""

    id: int
    name: str
    display: str


class Session(TypedDict):
    """A token, for how long it holds, and whose it is."""

    token: str
    expires_in_s: float
    user: User


@final
class Accounts:
    """Signs users in and reads their tokens."""

    def __init__(self, fleet: Fleet, config: Config) -> None:
        self._fleet = fleet
        self._config = config
        self._attempts: RateLimit | None = None

    async def open(self) -> None:
        """Join the limiter that all instances share."""
        self._attempts = await RateLimit.join(
            "quay:attempts", self._fleet.redis, limit=_ATTEMPTS_PER_MINUTE, window_s=60, when_unavailable="grant"
        )

    async def aclose(self) -> None:
        """Leave it. Without `open` before, nothing."""
        if self._attempts is not None:
            await self._attempts.aclose()

    async def register(self, new: NewUser, address: str) -> Session:
        """Make a user and sign it in. Raises `Problem`."""
        await self._count_attempt(address)
        hashed = await hash_password(new.password)
        try:
            row = await self._fleet.postgres.fetch_one(_INSERT, (new.name, new.display or new.name, hashed))
        except psycopg.errors.UniqueViolation as error:
            raise Problem(409, "name_taken", "This name is taken.") from error
        assert row is not None, "RETURNING gives a row"
        return self._session(_user(row), time.time())

    async def sign_in(self, given: Credentials, address: str) -> Session:
        """For the right password. Raises `Problem`: 401, or 429 after too many attempts."""
        await self._count_attempt(address)
        name = given.name.lower()
        await self._count_attempt(f"as {name}")
        row = await self._fleet.postgres.fetch_one(_BY_NAME, (name,))
        if not await is_password(given.password, None if row is None else row[4]):
            raise Problem(401, "not_signed_in", "Name or password is wrong.")
        assert row is not None, "no password is that of nobody"
        return self._session(_user(row), time.time())

    async def demo(self, given: Demo) -> Session:
        """Come in as a seeded user, where this is a demonstration. Raises `Problem` 404."""
        row = await self._fleet.postgres.fetch_one(_BY_NAME, (given.name,)) if self._config.demo else None
        if row is None or not row[3]:
            raise Problem(404, "no_demo", "There is no such user in this demonstration.")
        return self._session(_user(row), time.time())

    async def renew(self, token: str) -> Session:
        """A fresh token for one that still holds. Raises `Problem` 401."""
        claims = self.claims(token)
        if time.time() - claims.signed_in_s > self._config.session_max_s:
            raise _signed_out()
        return self._session(await self.user(claims.user_id), claims.signed_in_s)

    def claims(self, token: object) -> Claims:
        """What a token says. Raises `Problem` 401."""
        try:
            return read_token(token if isinstance(token, str) else "", self._config.secret, now_s=time.time())
        except TokenError as error:
            raise _signed_out() from error

    def bearer(self, authorization: str | None) -> int:
        """Whose request this is, by its Authorization header. Raises `Problem` 401."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Problem(401, "no_token", "Authorization: Bearer <token> is needed.")
        return self.claims(token.strip()).user_id

    async def user(self, user_id: int) -> User:
        """Raises `Problem` 401 if there is none any more."""
        row = await self._fleet.postgres.fetch_one(_BY_ID, (user_id,))
        if row is None:
            raise _signed_out()
        return _user(row)

    async def users(self) -> list[dict[str, Any]]:
        """Everybody, with when they were last seen (milliseconds since 1970)."""
        rows = await self._fleet.postgres.fetch(_ALL, (_LISTED_MAX,))
        return [{**_user(row), "last_seen": milliseconds(row[3])} for row in rows]

    async def demo_users(self) -> list[User]:
        """Who one can come in as."""
        return [_user(row) for row in await self._fleet.postgres.fetch(_DEMO)] if self._config.demo else []

    async def seen(self, user_id: int) -> None:
        """The user is here now."""
        await self._fleet.postgres.execute(_SEEN, (user_id,))

    async def _count_attempt(self, who: str) -> None:
        assert self._attempts is not None, "opened with the fleet"
        if not (decision := await self._attempts.take(who)):
            wait_s = math.ceil(decision.retry_after_s)
            raise Problem(429, "too_many_attempts", f"Too many attempts. Please try again in {wait_s} s.")

    def _session(self, user: User, signed_in_s: float) -> Session:
        ttl_s = self._config.token_ttl_s
        claims = Claims(user["id"], signed_in_s, time.time() + ttl_s)
        return {"token": sign_token(claims, self._config.secret), "expires_in_s": ttl_s, "user": user}


def milliseconds(at: datetime | None) -> int | None:
    """A time as JavaScript has it."""
    return None if at is None else int(at.timestamp() * 1000)


def _user(row: tuple[Any, ...]) -> User:
    return {"id": row[0], "name": row[1], "display": row[2]}


def _signed_out() -> Problem:
    return Problem(401, "not_signed_in", "The session has ended. Please sign in again.")
