"""Migration files: their names, their order, what they may hold, how they are cut into statements."""

from __future__ import annotations

from pathlib import Path

import pytest

from flotta.errors import ConfigError, InvalidName, MigrationMismatch, SeedChanged
from flotta.migrations.files import SqlFile, read_migrations, read_seeds
from flotta.migrations.ledger import Applied
from flotta.migrations.lock import lock_key
from flotta.migrations.runner import missing_migrations, missing_seeds
from flotta.migrations.statements import split


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(text)
    return folder


def test_files_are_read_in_the_order_of_their_numbers(tmp_path: Path):
    write(tmp_path, m0010_b="SELECT 2", m0009_a="SELECT 1", m00011_c="-- flotta: no-transaction\nSELECT 3")
    (tmp_path / "README.md").write_text("not SQL")
    files = read_migrations(tmp_path)
    assert [(file.version, file.name, file.transactional) for file in files] == [
        (9, "0009_a", True),
        (10, "0010_b", True),
        (11, "00011_c", False),
    ]
    assert read_migrations(write(tmp_path / "none")) == ()


@pytest.mark.parametrize("name", ["1_a", "0001-a", "0001_A", "0001", "0000_zero", "0001_a.b", "first"])
def test_wrong_names_are_refused(tmp_path: Path, name: str):
    (tmp_path / f"{name}.sql").write_text("SELECT 1")
    with pytest.raises(InvalidName, match=r"0001_create_ships\.sql"):
        read_migrations(tmp_path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"m0001_a": "SELECT 1", "m0003_c": "SELECT 1"}, "gap after 0001_a"),
        ({"m0001_a": "SELECT 1", "m0001_b": "SELECT 1"}, "has the number of 0001_a"),
        ({"m0001_a": "SELECT 1", "m00001_b": "SELECT 1"}, "has the number of"),
        ({"m0001_a": " -- nothing\n/* here */ ;;"}, "no statement"),
        ({"m0001_a": "CREATE TABLE a (); COMMIT; CREATE TABLE b ()"}, "COMMIT controls the transaction"),
        ({"m0001_a": "/* x */ begin; SELECT 1"}, "BEGIN controls the transaction"),
        ({"m0001_a": "-- flotta: no-transaction\nBEGIN; SELECT 1"}, "BEGIN controls"),
        ({"m0001_a": "PREPARE transaction 'a'"}, "PREPARE controls"),
        ({"m0001_a": "COPY a FROM stdin;\n1\n\\.\n"}, "needs psql"),
        ({"m0001_a": "COPY a /* x */ TO\nSTDOUT"}, "needs psql"),
        ({"m0001_a": "-- flotta: no-transactions\nSELECT 1"}, "unknown directive"),
        ({"m0001_a": "SELECT '\0'"}, "zero byte"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, files: dict[str, str], reason: str):
    with pytest.raises(MigrationMismatch, match=reason):
        read_migrations(write(tmp_path, **files))


def test_savepoints_and_routine_bodies_are_allowed(tmp_path: Path):
    body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;"
    plpgsql = "DO $x$ BEGIN COMMIT; END $x$;"
    write(tmp_path, m0001_a=f"SAVEPOINT a; ROLLBACK TO a; {body} {plpgsql} SELECT 1")
    (file,) = read_migrations(tmp_path)
    assert len(file.statements) == 5


def test_a_column_named_begin_opens_no_routine_body():
    text = "CREATE TABLE watch (begin timestamptz, ending timestamptz); CREATE INDEX CONCURRENTLY i ON watch (begin);"
    assert len(split(text)) == 2


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="migrations folder"):
        read_migrations(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="seeds folder"):
        read_seeds(tmp_path / "nowhere")
    assert read_seeds(None) == ()


def test_checksum_is_the_same_on_every_system(tmp_path: Path):
    (tmp_path / "0001_a.sql").write_bytes(b"SELECT 1;\nSELECT 2;\n")
    (unix,) = read_migrations(tmp_path)
    (tmp_path / "0001_a.sql").write_bytes(b"\xef\xbb\xbfSELECT 1;\r\nSELECT 2;\r\n")
    (windows,) = read_migrations(tmp_path)
    assert unix.checksum == windows.checksum
    (tmp_path / "0001_a.sql").write_bytes(b"SELECT 1;\nSELECT 3;\n")
    assert read_migrations(tmp_path)[0].checksum != unix.checksum


def test_seed_outside_a_transaction_is_refused(tmp_path: Path):
    with pytest.raises(MigrationMismatch, match="always"):
        read_seeds(write(tmp_path, m10_a="-- flotta: no-transaction\nSELECT 1"))
    with pytest.raises(InvalidName):
        read_seeds(write(tmp_path / "b", **{"m10-a": "SELECT 1"}))


# --- Folder against ledger -------------------------------------------------------------------------------------------


def file(version: int, checksum: str = "x") -> SqlFile:
    return SqlFile(version, f"{version:04d}_t", "SELECT 1", checksum, transactional=True)


def ledger(*versions: int, checksum: str = "x", unfinished: int = 0) -> dict[int, Applied]:
    return {v: Applied(v, f"{v:04d}_t", checksum, v != unfinished) for v in versions}


def test_what_is_missing_is_what_follows():
    plan = missing_migrations([file(1), file(2), file(3)], ledger(1))
    assert (plan.version, plan.newest, [step.version for step in plan.steps]) == ("0001", "0003", [2, 3])
    assert missing_migrations([file(1)], {}).version == "empty"
    assert missing_migrations([], {}).steps == ()


def test_database_ahead_of_the_folder_is_ready():
    plan = missing_migrations([file(1), file(2)], ledger(1, 2, 3))
    assert plan.steps == ()
    assert plan.version == "0003"


def test_interrupted_migration_is_due_again_whatever_it_holds_now():
    plan = missing_migrations([file(1), file(2, "new")], ledger(1, 2, unfinished=2))
    assert [step.version for step in plan.steps] == [2]


def test_squashed_folder_fits_a_database_that_has_all_before_it():
    assert missing_migrations([file(5), file(6)], ledger(1, 2, 3, 4, 5)).steps[0].version == 6
    assert missing_migrations([file(5)], ledger(1, 2, 3, 4)).steps[0].version == 5
    with pytest.raises(MigrationMismatch, match="does not follow"):
        missing_migrations([file(5)], ledger(1, 2, 3))


def test_changed_missing_and_skipped_files_are_refused():
    with pytest.raises(MigrationMismatch, match=r"0001_t\.sql: was changed after it was applied"):
        missing_migrations([file(1, "other")], ledger(1))
    with pytest.raises(MigrationMismatch, match="its file is gone"):
        missing_migrations([file(1), file(3)], ledger(1, 2, 3))
    with pytest.raises(MigrationMismatch, match="was skipped"):
        missing_migrations([file(1), file(2), file(3)], ledger(1, 3))


def test_changed_seed_is_refused_and_a_gone_one_is_history():
    assert [seed.name for seed in missing_seeds([file(1), file(2)], {"0001_t": "x", "old": "y"})] == ["0002_t"]
    with pytest.raises(SeedChanged, match="0001_t"):
        missing_seeds([file(1)], {"0001_t": "y"})


def test_lock_key_never_changes():
    # Instances of different versions of Flotta must agree on it.
    assert lock_key("harbor", "harbor") == 2080512218669673503
    assert lock_key("harbor", "other") != lock_key("harborother", "")


# --- Statements ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';', \"a;b\", 'it''s;'; x", ["SELECT ';', \"a;b\", 'it''s;'", "x"]),
        (r"SELECT E'\';', 1; x", [r"SELECT E'\';', 1", "x"]),
        (r"SELECT '\'; x", [r"SELECT '\'", "x"]),
        ("SELECT $$;$$, $a$ $$;$b$; $a$; x", ["SELECT $$;$$, $a$ $$;$b$; $a$", "x"]),
        ("SELECT a$1;$1; x", ["SELECT a$1", "$1", "x"]),
        ("-- a;b\nSELECT 1 /* ; /* ; */ ; */; x", ["-- a;b\nSELECT 1 /* ; /* ; */ ; */", "x"]),
        ("SELECT CASE WHEN a THEN b END; x", ["SELECT CASE WHEN a THEN b END", "x"]),
        ("CREATE TABLE begin_end (n int); x", ["CREATE TABLE begin_end (n int)", "x"]),
        ("", []),
    ],
)
def test_statements_are_cut_where_postgresql_cuts_them(text: str, statements: list[str]):
    assert split(text) == statements
