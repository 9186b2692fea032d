"""What `flotta run` is told, checked before anything starts."""

from __future__ import annotations

import os
import re
import shlex
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from flotta.errors import ConfigError

__all__ = ["Companion", "RunOptions"]

_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NAME_RULE = "1 to 63 letters, digits, dots, dashes or underscores, beginning with a letter or digit"
_ARGUMENTS = "command line"


@final
@dataclass(frozen=True, slots=True)
class Companion:
    """A process beside the instances: ``command`` is run by a shell, with the instances' environment."""

    name: str
    command: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not self.command.strip():
            raise ConfigError("--with", f"{self.name}={self.command}", "name=command", source=_ARGUMENTS)
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise ConfigError("--with", self.command, f"a shell command ({error})", source=_ARGUMENTS) from error

    @classmethod
    def parse(cls, text: str) -> Companion:
        """From ``name=command``. Raises ConfigError."""
        name, _, command = text.partition("=")
        return cls(name.strip(), command.strip())


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The service to run. Times in seconds. Raises ConfigError when made with what cannot work."""

    app: str
    """``package.module:attribute``."""
    instances: int = 1
    service: str = "app"
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    uds: str | None = None
    """Path of a Unix socket, instead of host and port."""
    uds_mode: int = 0o660
    fd: int | None = None
    """An inherited listening socket, instead of host and port."""
    interface: Literal["auto", "asgi", "wsgi"] = "auto"
    factory: bool = False
    app_dir: Path = Path()
    """Put at the head of the instances' import path; also what ``reload`` watches."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None
    access_log: bool = False
    drain_s: float = 25.0
    stop_s: float | None = None
    """From the order to stop until everything is killed; None: 5 s more than the drain."""
    instance: str | None = None
    """What the ids of the instances begin with; None: service, host and process id."""
    reload: bool = False
    reload_dirs: tuple[Path, ...] = ()
    """Watched instead of ``app_dir``."""
    companions: tuple[Companion, ...] = ()
    embedded: bool = False
    """Run Redis and PostgreSQL too, for whichever no URL is set."""
    embedded_dir: Path = Path(".flotta")
    ready_path: str | None = None
    """``ready`` is told only when this path of the service answers 2xx; None: when all instances are ready."""
    json: bool = False

    def __post_init__(self) -> None:
        if not _APP.fullmatch(self.app):
            raise ConfigError("APP", self.app, "module:attribute, such as app:app or shop.web:app", source=_ARGUMENTS)
        if not 1 <= self.instances <= 1024:
            raise ConfigError("-n", self.instances, "1 to 1024 instances", source=_ARGUMENTS)
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", self.port, "0 to 65535", source=_ARGUMENTS)
        if not 0 <= self.drain_s <= 3600:
            raise ConfigError("--drain", self.drain_s, "0 to 3600 seconds", source=_ARGUMENTS)
        if self.stop_s is not None and self.stop_s <= self.drain_s:
            allowed = f"more than the drain, which is {self.drain_s:g} s"
            raise ConfigError("FLOTTA_STOP_S", self.stop_s, allowed, source=_ARGUMENTS)
        if self.uds is not None and self.fd is not None:
            raise ConfigError("--fd", self.fd, "either --fd or --uds, not both", source=_ARGUMENTS)
        if self.ready_path is not None and not self.ready_path.startswith("/"):
            raise ConfigError("--ready-path", self.ready_path, "a path that begins with /", source=_ARGUMENTS)
        self._check_folders()
        self._check_names()
        self._check_tls()

    def _check_folders(self) -> None:
        for name, folder in (("--app-dir", self.app_dir), *(("--reload-dir", path) for path in self.reload_dirs)):
            if not folder.is_dir():
                raise ConfigError(name, str(folder), "a folder that exists", source=_ARGUMENTS)

    def _check_names(self) -> None:
        if not _NAME.fullmatch(self.service):
            raise ConfigError("--name", self.service, _NAME_RULE, source=_ARGUMENTS)
        names = [*self.instance_names, *(companion.name for companion in self.companions)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("--with", name, "a name that no other process has", source=_ARGUMENTS)

    def _check_tls(self) -> None:
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ConfigError("--ssl-certfile", None, "the certificate of --ssl-keyfile", source=_ARGUMENTS)
            return
        for name, path in (("--ssl-certfile", self.ssl_certfile), ("--ssl-keyfile", self.ssl_keyfile)):
            if path is not None and not os.access(path, os.R_OK):
                raise ConfigError(name, path, "a file that can be read", source=_ARGUMENTS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password or "")
        except (ssl.SSLError, ValueError) as error:
            allowed = f"a PEM certificate chain with its key ({error})"
            raise ConfigError("--ssl-certfile", self.ssl_certfile, allowed, source=_ARGUMENTS) from error

    @property
    def instance_names(self) -> list[str]:
        """``api.1`` and so on: what people read. Other hosts have the same."""
        return [f"{self.service}.{number}" for number in range(1, self.instances + 1)]

    @property
    def scheme(self) -> str:
        return "http" if self.ssl_certfile is None else "https"
