"""The HTTP request that opened a session, kept small: thousands of them are alive.

The native transport keeps the bytes of the request's head, the ASGI transport the scope that the web server holds
anyway; dictionaries are made when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final
from urllib.parse import parse_qsl, unquote

from flotta.realtime.engineio.handshake import Facts

__all__ = ["Request", "parse_head"]

_UNPREFIXED = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}

Headers = list[tuple[bytes, bytes]]


def parse_head(head: bytes) -> tuple[str, bytes, Headers]:
    """Method, target and headers (names in lower case) of a request's head. Raises ValueError."""
    lines = head.split(b"\r\n")
    method, target, _ = lines[0].split(b" ", 2)
    headers: Headers = []
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ValueError("a header without a colon")
            headers.append((name.strip().lower(), value.strip()))
    return method.decode("ascii"), target, headers


@final
class Request:
    """Reads scopes and heads alike. Give exactly one of ``scope`` and ``head``."""

    __slots__ = ("_client", "_head", "_scheme", "_scope")

    def __init__(
        self,
        *,
        scope: Mapping[str, Any] | None = None,
        head: bytes = b"",
        client: tuple[str, int] | None = None,
        scheme: str = "ws",
    ) -> None:
        self._scope = scope
        self._head = head
        self._client = client
        self._scheme = scheme

    def scope(self) -> Mapping[str, Any]:
        """The request as an ASGI scope. Raises ValueError for a head that is none."""
        if self._scope is not None:
            return self._scope
        _, target, headers = parse_head(self._head)
        path, _, query = target.partition(b"?")
        return {
            "type": "websocket",
            "http_version": "1.1",
            "scheme": self._scheme,
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
        }

    def facts(self) -> Facts:
        """What the handshake's rules need. Raises ValueError for a head that is none."""
        scope = self.scope()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        return Facts(
            method=scope.get("method", "GET"),
            upgrade=scope["type"] == "websocket",
            version=query.get("EIO", ""),
            transport=query.get("transport", ""),
            sid=query.get("sid", ""),
            origin=headers.get(b"origin"),
            host=headers.get(b"host", ""),
            secure=scope.get("scheme") in {"https", "wss"},
            address=self.address,
        )

    @property
    def address(self) -> str:
        """Where it came from; empty if that is no address."""
        client = self._client if self._scope is None else self._scope.get("client")
        return "" if client is None else str(client[0])

    def environ(self) -> dict[str, Any]:
        """The request in the form of WSGI's environ, with the scope under ``asgi.scope``."""
        scope = self.scope()
        client = scope.get("client") or ("", 0)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": scope.get("method", "GET"),
            "PATH_INFO": scope["path"],
            "QUERY_STRING": scope["query_string"].decode("latin-1"),
            "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
            "REMOTE_ADDR": client[0],
            "REMOTE_PORT": str(client[1]),
            "wsgi.url_scheme": scope.get("scheme", "ws"),
            "asgi.scope": scope,
        }
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1").lower()
            if "_" in name:  # it would pass for the header with a hyphen, which a proxy may have put there
                continue
            key = _UNPREFIXED.get(name) or "HTTP_" + name.upper().replace("-", "_")
            value = raw_value.decode("latin-1")
            # RFC 9110 5.3: fields of one name are one list; cookies are joined by a semicolon.
            joint = "; " if key == "HTTP_COOKIE" else ","
            environ[key] = environ[key] + joint + value if key in environ else value
        return environ
