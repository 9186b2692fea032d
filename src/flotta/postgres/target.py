"""Where a URL points to, told without its password, and what a failed connect means, told with its cure.

Pure but for libpq's parsing of the URL. The words of a failure are matched because libpq gives a failed connect no
SQLSTATE; they are English when the server's ``lc_messages`` is, else the server's own words stand alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from flotta.errors import ConfigError

__all__ = ["APPLICATION_NAME_BYTES_MAX", "Reason", "Target", "application_name", "explain"]

APPLICATION_NAME_BYTES_MAX = 63
"""NAMEDATALEN - 1: PostgreSQL cuts off the rest."""

_URL_SHAPE = "a URL such as postgresql://user:password@host:5432/database?sslmode=require, special characters as %XX"
_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+://")
_KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""A host that vanished is noticed within a minute instead of two hours (seconds; the last in milliseconds)."""


def application_name(service: str, instance: str) -> str:
    """``flotta:<service>:<instance>`` in at most 63 bytes: what ``pg_stat_activity`` shows for our connections.

    The service is cut before the instance, which tells one process from another. PostgreSQL replaces what is not
    printable ASCII, and so do we.
    """
    service, instance = ("".join(c if " " <= c <= "~" else "?" for c in text) for text in (service, instance))
    instance = instance[-(APPLICATION_NAME_BYTES_MAX - len("flotta::")) :]
    room = APPLICATION_NAME_BYTES_MAX - len("flotta::") - len(instance)
    return f"flotta:{service[:room]}:{instance}"


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. ``address`` may be shown to anybody; ``conninfo`` may not."""

    conninfo: str
    address: str
    hosts: int
    """How many hosts the URL names: they are tried in turn."""

    def __repr__(self) -> str:
        return f"Target({self.address})"

    @classmethod
    def parse(cls, url: str, *, application: str | None, connect_timeout_s: float) -> Target:
        """Read a URL (or a libpq connection string). ``application`` replaces the URL's ``application_name``.

        Raises ``ConfigError``, which does not show the URL.
        """
        try:
            given = conninfo_to_dict(_DRIVER.sub(r"\1://", url))
        except psycopg.Error:
            # `from None`: libpq quotes the offending part, which may be the password.
            raise ConfigError("DATABASE_URL", "not shown: may hold a password", _URL_SHAPE, source="url") from None
        name = application or given.get("application_name") or "flotta"
        # libpq takes whole seconds and no less than 2; the pool itself bounds the rest.
        fixed = {"application_name": name, "connect_timeout": str(max(2, round(connect_timeout_s + 0.5)))}
        words = {key: str(value) for key, value in {**_KEEPALIVE, **given, **fixed}.items()}
        return cls(make_conninfo("", **words), _address(words), len(words.get("host", "").split(",")))


def _address(words: dict[str, str]) -> str:
    hosts = words.get("host") or words.get("hostaddr") or "localhost"
    ports = words.get("port", "5432").split(",")
    names = hosts.split(",")
    ports = ports * len(names) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port}" for host, port in zip(names, ports, strict=False))
    return f"{places}/{words.get('dbname') or words.get('user') or ''}"


@final
@dataclass(frozen=True, slots=True)
class Reason:
    """Why a connect failed. ``lasting``: waiting will not help, somebody has to change something."""

    text: str
    cure: str = ""
    lasting: bool = False

    def __str__(self) -> str:
        stop = "" if self.text.endswith((".", "?")) else "."
        return f"{self.text}{stop} {self.cure}" if self.cure else self.text


_MANY = (
    "Too many connections: lower size_max of the pools or the number of instances, raise max_connections, "
    "or put PgBouncer in between"
)
_KNOWN: tuple[tuple[str, str, bool], ...] = (
    # what libpq, the server or PgBouncer say | the cure | lasting
    (r"too many clients|connection slots are reserved|no more connections allowed", _MANY, False),
    (
        r"too many connections for (role|database)",
        "Its CONNECTION LIMIT is reached: lower size_max, or raise the limit (ALTER ROLE, ALTER DATABASE)",
        False,
    ),
    (
        r"password authentication failed|no password supplied|SASL authentication failed|wrong password",
        "The server refuses the user or its password: correct them in the URL",
        True,
    ),
    (r"no pg_hba\.conf entry", "The server's pg_hba.conf does not admit this user, host or (missing) TLS", True),
    (r"role \".*\" (does not exist|is not permitted to log in)", "Create the role, or correct the URL", True),
    (r"database \".*\" does not exist|no such database", "Create the database, or correct the URL", True),
    (r"server does not support SSL", "The server speaks no TLS: configure it there, or lower sslmode in the URL", True),
    (
        r"certificate|root\.crt|SSL error: (?!unexpected eof)",
        "TLS could not be agreed on: check sslmode, sslrootcert and the server's name",
        True,
    ),
    (r"starting up|in recovery mode|not yet accepting connections", "The server is starting: it is asked again", False),
    (r"shutting down|terminating connection", "The server is stopping: it is asked again", False),
    (
        r"[Cc]onnection refused|No such file or directory|server closed the connection unexpectedly",
        "Nothing listens there now (a restart, a failover, a wrong address): it is asked again",
        False,
    ),
    (
        r"timeout expired|timed out|No route to host|Network is unreachable",
        "No answer: the host is down, a firewall drops the packets, or the server is stuck: it is asked again",
        False,
    ),
    (
        r"failed to resolve host|could not translate host name|Name or service not known",
        "The host's name is unknown to DNS: it is asked again",
        False,
    ),
)


def explain(message: str) -> Reason:
    """What the words of a failed connect mean, and what helps."""
    text = " ".join(message.split()).removeprefix("connection failed: ")
    for pattern, cure, lasting in _KNOWN:
        if re.search(pattern, text):
            return Reason(text, cure, lasting)
    return Reason(text)
