"""Accounts in PostgreSQL, and sessions: signing up, signing in, renewing, and who a token stands for."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, final

import psycopg

from flotta.fleet import Fleet
from harbor.accounts.passwords import PASSWORD_LENGTH_MAX, PASSWORD_LENGTH_MIN, hash_password, password_matches
from harbor.accounts.throttle import Throttle
from harbor.accounts.tokens import Claims, TokenError, read_token, sign_token
from harbor.config import HarborConfig
from harbor.problem import Problem

__all__ = ["Account", "Sessions"]

DEMO_EMAIL = "demo@harbor.example"
_EMAIL = re.compile(r"[^@\s\0]{1,64}@[^@\s\0]{1,189}")
_INSERT = "INSERT INTO accounts (email, name, password_hash) VALUES (%s, %s, %s) RETURNING id, email, name, demo"
_BY_EMAIL = "SELECT id, email, name, demo, password_hash FROM accounts WHERE email = %s"
_BY_ID = "SELECT id, email, name, demo FROM accounts WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Account:
    """An account as others may see it."""

    id: int
    email: str
    name: str
    demo: bool


@final
class Sessions:
    """Signs accounts in and reads their tokens."""

    def __init__(self, fleet: Fleet, config: HarborConfig) -> None:
        self._fleet = fleet
        self._config = config
        self._throttle = Throttle(fleet)

    async def sign_up(self, email: str, name: str, password: str, *, address: str) -> dict[str, Any]:
        """Makes an account and signs it in. Raises `Problem`."""
        await self._throttle.check("sign-up", address, attempts_max=20)
        email = _checked_email(email)
        if not PASSWORD_LENGTH_MIN <= len(password) <= PASSWORD_LENGTH_MAX:
            words = f"A password has {PASSWORD_LENGTH_MIN} to {PASSWORD_LENGTH_MAX} characters."
            raise Problem(422, "password_wrong", words)
        hashed = await hash_password(password)
        try:
            row = await self._fleet.postgres.fetch_one(_INSERT, (email, name, hashed))
        except psycopg.errors.UniqueViolation as error:
            raise Problem(409, "email_taken", "There is an account with this email already.") from error
        assert row is not None, "RETURNING gives a row"
        return self._begin(Account(*row), time.time())

    async def sign_in(self, email: str, password: str, *, address: str) -> dict[str, Any]:
        """A session for the right password. Raises `Problem`: 401, or 429 after too many attempts."""
        email = email.strip().lower()
        await self._throttle.check("sign-in", address, attempts_max=30)
        await self._throttle.check("sign-in-as", email, attempts_max=10)
        row = await self._fleet.postgres.fetch_one(_BY_EMAIL, (email,))
        if not await password_matches(password[:PASSWORD_LENGTH_MAX], row[4] if row is not None else None):
            raise Problem(401, "not_signed_in", "Email or password is wrong.")
        assert row is not None, "no password matches no account"
        return self._begin(Account(*row[:4]), time.time())

    async def demo(self) -> dict[str, Any]:
        """A session of the demo viewer. Raises `Problem` 404 where there is no demonstration."""
        row = await self._fleet.postgres.fetch_one(_BY_EMAIL, (DEMO_EMAIL,)) if self._config.demo else None
        if row is None:
            raise Problem(404, "no_demo", "There is no demonstration here.")
        return self._begin(Account(*row[:4]), time.time())

    async def renew(self, token: str) -> dict[str, Any]:
        """A fresh token for one that still holds. Raises `Problem` 401."""
        claims = self.claims(token)
        if time.time() - claims.signed_in_s > self._config.session_max_s:
            raise Problem(401, "session_ended", "The session has ended. Please sign in again.")
        account = await self.account(claims.account_id)
        return self._begin(account, claims.signed_in_s)

    def claims(self, token: str) -> Claims:
        """What the token says. Raises `Problem` 401."""
        try:
            return read_token(token, self._config.secret, now_s=time.time())
        except TokenError as error:
            raise Problem(401, "not_signed_in", "The session has ended. Please sign in again.") from error

    async def account(self, account_id: int) -> Account:
        """Raises `Problem` 401 if it exists no more."""
        row = await self._fleet.postgres.fetch_one(_BY_ID, (account_id,))
        if row is None:
            raise Problem(401, "not_signed_in", "This account exists no more.")
        return Account(*row)

    def _begin(self, account: Account, signed_in_s: float) -> dict[str, Any]:
        ttl_s = self._config.token_ttl_s
        claims = Claims(account_id=account.id, signed_in_s=signed_in_s, ends_s=time.time() + ttl_s)
        return {
            "token": sign_token(claims, self._config.secret),
            "expires_in_s": ttl_s,
            "account": {"email": account.email, "name": account.name, "demo": account.demo},
        }


def _checked_email(email: str) -> str:
    email = email.strip().lower()
    if not _EMAIL.fullmatch(email):
        raise Problem(422, "email_wrong", "This is no email address.")
    return email
