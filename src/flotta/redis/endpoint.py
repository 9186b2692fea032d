"""Where a server is and how to be let in: one URL or redis-py's connection arguments -> ``Endpoint``.

Owns: everything that must never be shown (the password) and the address that may be shown everywhere. URL rules, TLS
arguments and credential providers are redis-py's own, so that a URL means here what it means there.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final
from urllib.parse import urlsplit

from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError as DriverError

from flotta.errors import ConfigError

__all__ = ["Endpoint"]

# urllib quotes what it cannot read, and that may be a part of the password. These sentences quote nothing.
_SAFE_SENTENCES = ("Invalid value for '", "Redis URL must specify", "the path must be")
_URL_ALLOWED = "redis://[[user]:password@]host[:port][/db], rediss://... (TLS) or unix:///path.sock[?db=0]"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One server. ``str()`` of it is its address without user and password."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: CredentialProvider | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    client_name: str | None = None

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """Read ``url``. Raises ``ConfigError`` (which shows the URL without its password)."""
        try:
            _check_database(url)
            pool = ConnectionPool.from_url(url)
            # A wrong query argument shows only when redis-py makes a connection object (no I/O happens here).
            pool.connection_class(**pool.connection_kwargs)
            return cls.from_driver(pool.connection_class, pool.connection_kwargs)
        except (ValueError, TypeError, OSError, DriverError) as error:
            # Not "from error": the cause may quote a password, and tracebacks are logged.
            allowed = f"{_URL_ALLOWED} ({_safe_reason(error)})"
            raise ConfigError("url", without_secrets(url), allowed, source="Redis URL") from None

    @classmethod
    def from_driver(cls, connection_class: type[Any], kwargs: Mapping[str, Any]) -> Endpoint:
        """The endpoint that redis-py would connect to with these connection arguments."""
        is_unix = issubclass(connection_class, UnixDomainSocketConnection)
        return cls(
            host=kwargs.get("host") or "localhost",
            port=int(kwargs.get("port") or 6379),
            path=kwargs.get("path") if is_unix else None,
            db=int(kwargs.get("db") or 0),
            username=kwargs.get("username"),
            password=kwargs.get("password"),
            credentials=kwargs.get("credential_provider"),
            tls=_tls_context(kwargs) if issubclass(connection_class, SSLConnection) else None,
            client_name=kwargs.get("client_name"),
        )

    async def login(self) -> tuple[str, str] | None:
        """User and password for the greeting; a credential provider is asked anew for each connection."""
        if self.credentials is not None:
            found = tuple(await self.credentials.get_credentials_async())
            return ("default", str(found[0])) if len(found) == 1 else (str(found[0]), str(found[1]))
        if self.username is None and self.password is None:
            return None
        # A user without a password (ACL "nopass") still must not become the default user.
        return self.username or "default", self.password or ""

    @property
    def address(self) -> str:
        """For people, logs and errors: never with user or password."""
        database = f"/{self.db}" if self.db else ""
        if self.path is not None:
            return f"unix:{self.path}{database}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{database}"

    def __str__(self) -> str:
        return self.address


def without_secrets(url: str) -> str:
    """``url`` with everything before the host's ``@`` and all query arguments taken out."""
    head, separator, rest = url.partition("://")
    if not separator:
        return "(no URL)"
    place = rest.partition("?")[0]
    return f"{head}://{place.rpartition('@')[2]}"


def _safe_reason(error: Exception) -> str:
    """What is wrong with a URL, in words that quote nothing of its user, password or host."""
    text = str(error)
    if isinstance(error, ValueError) and not text.startswith(_SAFE_SENTENCES):
        return "it cannot be read; special characters in user and password must be percent-encoded"
    return text


def _check_database(url: str) -> None:
    # redis-py silently takes database 0 when the path is no number. To write into the wrong database is worse than to
    # stop.
    parts = urlsplit(url)
    if parts.scheme in {"redis", "rediss"} and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("the path must be a database number")


def _tls_context(kwargs: Mapping[str, Any]) -> ssl.SSLContext:
    arguments = {name: value for name, value in kwargs.items() if name.startswith("ssl_")}
    context: ssl.SSLContext = SSLConnection(**arguments).ssl_context.get()
    return context
