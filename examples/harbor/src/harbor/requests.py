"""What requests carry: a JSON body of bounded size, a bearer token, the address they come from."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from harbor.problem import Problem

__all__ = ["bearer", "client_address", "read_json", "read_object", "text_field"]


async def read_json(request: Request, *, bytes_max: int) -> Any:
    """The body as JSON. Raises `Problem`: 413 as soon as it is too large, 400 if it is no JSON."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise Problem(413, "too_large", f"A body has at most {bytes_max} bytes.")
    try:
        said = json.loads(body)
        if b"\\u" in body:  # RFC 8259 8.2: an escape can spell half of a surrogate pair, which no text may hold
            json.dumps(said, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Problem(400, "not_json", "The body is no JSON.") from error
    return said


async def read_object(request: Request, *, bytes_max: int = 16_384) -> dict[str, Any]:
    """The body as a JSON object. Raises `Problem`."""
    body = await read_json(request, bytes_max=bytes_max)
    if not isinstance(body, dict):
        raise Problem(400, "not_an_object", "The body must be a JSON object.")
    return body


def text_field(body: dict[str, Any], name: str, *, length_max: int, default: str | None = None) -> str:
    """A text of the body, trimmed. Without a ``default`` it is required. Raises `Problem` 422."""
    value = body.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise Problem(422, f"{name}_missing", f"{name} must be a text.")
    if len(value) > length_max or "\0" in value:
        raise Problem(422, f"{name}_wrong", f"{name} has at most {length_max} characters.")
    return value.strip()


def bearer(request: Request) -> str:
    """The token of the Authorization header. Raises `Problem` 401."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Problem(401, "no_token", "Authorization: Bearer <token> is needed.")
    return token.strip()


def client_address(request: Request) -> str:
    """The peer's address (behind a trusted proxy the server has already put the client's here)."""
    return request.client.host if request.client is not None else "local"
