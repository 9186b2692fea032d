"""HTTP: accounts and sessions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from harbor.accounts.passwords import PASSWORD_LENGTH_MAX
from harbor.accounts.sessions import Sessions
from harbor.requests import bearer, client_address, read_object, text_field

__all__ = ["routes"]


def routes(sessions: Sessions) -> APIRouter:
    """``/api/accounts`` and ``/api/session``."""
    router = APIRouter(prefix="/api", tags=["accounts"])

    @router.post("/accounts", status_code=201)
    async def sign_up(request: Request) -> dict[str, Any]:
        """Make an account: email, name, password (10 characters or more)."""
        body = await read_object(request)
        email = text_field(body, "email", length_max=254)
        name = text_field(body, "name", length_max=80)
        password = text_field(body, "password", length_max=PASSWORD_LENGTH_MAX)
        return await sessions.sign_up(email, name, password, address=client_address(request))

    @router.post("/session")
    async def sign_in(request: Request) -> dict[str, Any]:
        """Sign in: email, password."""
        body = await read_object(request)
        email = text_field(body, "email", length_max=254)
        password = text_field(body, "password", length_max=PASSWORD_LENGTH_MAX)
        return await sessions.sign_in(email, password, address=client_address(request))

    @router.post("/session/renew")
    async def renew(request: Request) -> dict[str, Any]:
        """A fresh token for one that still holds."""
        return await sessions.renew(bearer(request))

    @router.post("/session/demo")
    async def demo() -> dict[str, Any]:
        """A session of the demo viewer."""
        return await sessions.demo()

    return router
