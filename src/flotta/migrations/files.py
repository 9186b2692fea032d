"""Folders of SQL files: what a migration or a seed is called, may hold, and how it is recognised again.

Nothing here talks to a database. A wrong name, a gap or a duplicate stops everything before the first statement.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

from flotta.errors import ConfigError, InvalidName, MigrationMismatch
from flotta.migrations.statements import first_words, split, without_comments

__all__ = ["SqlFile", "read_migrations", "read_seeds"]

_MIGRATION = re.compile(r"(?P<version>\d{4,9})_(?P<title>[a-z0-9_]{1,100})\.sql")
_SEED = re.compile(r"[a-z0-9_]{1,100}\.sql")
_MIGRATION_RULE = "four or more digits, _, a title in a-z 0-9 _, .sql, as in 0001_create_ships.sql"
_SEED_RULE = "a title in a-z 0-9 _, then .sql, as in 10_first_users.sql"
_NO_TRANSACTION = re.compile(r"^--\s*flotta:\s*no-transaction\s*$")
_DIRECTIVE = re.compile(r"^--\s*flotta:\s*(.*)$")
_CONTROL = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "END", "ABORT", "START"})
_CLIENT_COPY = re.compile(r"\b(?:FROM\s+STDIN|TO\s+STDOUT)\b", re.IGNORECASE)
_BYTES_MAX = 64 * 1024 * 1024


@final
@dataclass(frozen=True, slots=True)
class SqlFile:
    """One file. ``checksum`` is SHA-256 of its text with ``\\n`` line ends, so that a checkout on another system is the
    same file."""

    version: int
    """0 for a seed."""
    name: str
    """Without ``.sql``."""
    text: str
    checksum: str
    transactional: bool
    """False if its head says ``-- flotta: no-transaction``: its statements then run one by one, each by itself."""

    @property
    def statements(self) -> list[str]:
        return split(self.text)


def _read(path: Path, version: int) -> SqlFile:
    if path.stat().st_size > _BYTES_MAX:
        raise MigrationMismatch(path.name, f"larger than {_BYTES_MAX} bytes")
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise MigrationMismatch(path.name, f"no UTF-8 text: {error}") from error
    if "\0" in text:
        raise MigrationMismatch(path.name, "holds a zero byte")
    transactional = _head(path.name, text)
    _check_statements(path.name, text)
    return SqlFile(version, path.stem, text, hashlib.sha256(text.encode()).hexdigest(), transactional)


def _head(name: str, text: str) -> bool:
    """Read the comments at the file's start. True if it runs in a transaction."""
    transactional = True
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line.startswith("--"):
            break
        if _NO_TRANSACTION.match(line):
            transactional = False
        elif directive := _DIRECTIVE.match(line):
            raise MigrationMismatch(name, f"unknown directive {directive[1]!r}; there is only: no-transaction")
    return transactional


def _check_statements(name: str, text: str) -> None:
    statements = split(text)
    if not statements:
        raise MigrationMismatch(name, "holds no statement")
    for statement in statements:
        word, second = first_words(statement)
        if (word in _CONTROL and (word, second) != ("ROLLBACK", "TO")) or (word, second) == ("PREPARE", "TRANSACTION"):
            raise MigrationMismatch(
                name,
                f"{word} controls the transaction, which is ours to do; for statements that cannot run in one begin "
                "the file with: -- flotta: no-transaction",
            )
        if word == "COPY" and _CLIENT_COPY.search(without_comments(statement)):
            raise MigrationMismatch(name, "COPY from STDIN or to STDOUT needs psql: write INSERT (pg_dump --inserts)")


def _sql_files(folder: Path, setting: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(setting, str(folder), "a folder with .sql files", source="argument")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".sql" and not path.name.startswith("."))


def read_migrations(folder: Path) -> tuple[SqlFile, ...]:
    """All migrations of a folder in their order.

    Raises ``InvalidName``, ``MigrationMismatch`` (gap, duplicate, unusable contents), ``ConfigError`` (no folder).
    """
    files: list[SqlFile] = []
    for path in _sql_files(folder, "migrations folder"):
        found = _MIGRATION.fullmatch(path.name)
        if found is None or int(found["version"]) == 0:
            raise InvalidName("migration file", path.name, _MIGRATION_RULE)
        files.append(_read(path, int(found["version"])))
    files.sort(key=lambda file: file.version)
    for before, after in itertools.pairwise(files):
        if after.version == before.version:
            raise MigrationMismatch(f"{after.name}.sql", f"has the number of {before.name}.sql")
        if after.version != before.version + 1:
            raise MigrationMismatch(f"{after.name}.sql", f"leaves a gap after {before.name}.sql")
    return tuple(files)


def read_seeds(folder: Path | None) -> tuple[SqlFile, ...]:
    """All seeds of a folder in the order of their names. Raises as ``read_migrations``."""
    if folder is None:
        return ()
    seeds = []
    for path in _sql_files(folder, "seeds folder"):
        if _SEED.fullmatch(path.name) is None:
            raise InvalidName("seed file", path.name, _SEED_RULE)
        seed = _read(path, 0)
        if not seed.transactional:
            raise MigrationMismatch(path.name, "a seed is one transaction with its row in the ledger, always")
        seeds.append(seed)
    return tuple(seeds)
