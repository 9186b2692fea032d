"""The sockets on which a worker listens: inherited ones, or its own."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Final

from flotta.errors import ConfigError
from flotta.server.config import ServeConfig

__all__ = ["listening_sockets", "shown_address"]

PROBE_S: Final = 1.0


def listening_sockets(config: ServeConfig) -> list[socket.socket]:
    """Those of ``config``. Its own are bound here and listen only when the application has started, so that a taken
    port is told at once and nobody is kept waiting. Raises `ConfigError`, `OSError`."""
    if config.fds:
        return [_inherited(fd) for fd in config.fds]
    return [_unix(config.uds) if config.uds is not None else _tcp(config.host, config.port)]


def _inherited(fd: int) -> socket.socket:
    try:
        inherited = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError("fds", fd, f"an inherited listening socket ({error.strerror})", source="serve") from error
    inherited.settimeout(0)
    return inherited


def _tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol: asyncio sends small packets at once (TCP_NODELAY) only for sockets that name it.
    own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((host, port))
    except OSError as error:
        own.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    own.settimeout(0)
    return own


def _unix(path: str) -> socket.socket:
    if _is_dead(path):
        Path(path).unlink(missing_ok=True)  # left behind by a process that was killed
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        own.bind(path)
    except OSError as error:
        own.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror}") from error
    own.settimeout(0)
    return own


def _is_dead(path: str) -> bool:
    """Whether a Unix socket is there and nobody listens on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:  # also where the file is no socket at all
            return stat.S_ISSOCK(Path(path).stat().st_mode)
        except OSError:
            return False
    return False


def shown_address(config: ServeConfig, sockets: list[socket.socket]) -> str:
    """Where it listens, for people."""
    if config.uds is not None:
        return f"unix:{config.uds}"
    scheme = "https" if config.ssl_certfile else "http"
    name = sockets[0].getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{scheme}://{host}:{name[1]}"
