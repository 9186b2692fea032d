"""Settings: what may stand where, who wins, what an error says, what nobody may see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flotta.errors import ConfigError
from flotta.settings import Redactor, Settings, describe, redact_url

CANARY = "c4n4ry!p@ss"


def load(**environ: str) -> Settings:
    return Settings.load(environ)


def test_nothing_set_gives_the_documented_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load()
    assert settings == Settings()
    assert (settings.drain_s, settings.stop_s) == (25.0, 30.0)
    assert (settings.postgres_size_max, settings.postgres_size_min) == (10, 2)
    assert settings.redis_url is None


WRONG = [
    ("FLOTTA_DRAIN_S", "soon"),
    ("FLOTTA_DRAIN_S", "nan"),
    ("FLOTTA_DRAIN_S", "-1"),
    ("FLOTTA_POSTGRES_SIZE_MAX", "0"),
    ("FLOTTA_POSTGRES_SIZE_MAX", "1.5"),
    ("FLOTTA_SERVICE", "two words"),
    ("FLOTTA_READY_REQUIRES", "redis,mysql"),
    ("FLOTTA_HEALTH_PATH", "health"),
    ("FLOTTA_HEALTH_PATH", "/"),
    ("FLOTTA_METRICS_TOKEN", "short"),
    ("FLOTTA_LOG_FORMAT", "xml"),
    ("REDIS_URL", "http://host"),
    ("REDIS_URL", "redis://host:notaport"),
    ("DATABASE_URL", "mysql://host/db"),
    ("DATABASE_URL", "postgresql://h:99999/db"),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_wrong_value_names_the_variable_and_what_is_allowed(variable: str, value: str) -> None:
    parser = next(info.parser for info in describe() if info.variable == variable)
    with pytest.raises(ConfigError) as caught:
        load(**{variable: value})
    assert caught.value.variable == variable
    assert caught.value.allowed == parser.allowed
    assert variable in str(caught.value)
    assert parser.allowed in str(caught.value)


def test_every_default_is_allowed_by_its_own_parser() -> None:
    for info in describe():
        if info.default is None or isinstance(info.default, frozenset):
            continue
        assert info.parser.parse(str(info.default)) == info.default, info.variable


def test_unknown_variable_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean FLOTTA_DRAIN_S"):
        load(FLOTTA_DRAIN_SS="3")


def test_kubernetes_service_links_are_no_settings() -> None:
    links = {
        "FLOTTA_SERVICE_HOST": "10.0.0.1",
        "FLOTTA_SERVICE_PORT": "80",
        "FLOTTA_SERVICE_PORT_HTTP": "80",
        "FLOTTA_PORT": "tcp://10.0.0.1:80",
        "FLOTTA_PORT_80_TCP": "tcp://10.0.0.1:80",
        "FLOTTA_PORT_80_TCP_ADDR": "10.0.0.1",
        "FLOTTA_API_SERVICE_HOST": "10.0.0.1",
    }
    assert load(**links) == load()


def test_redis_port_of_a_service_link_is_explained() -> None:
    with pytest.raises(ConfigError, match="enableServiceLinks"):
        load(REDIS_HOST="redis", REDIS_PORT="tcp://10.0.0.1:6379")


def test_parts_make_a_url_with_everything_quoted() -> None:
    settings = load(REDIS_HOST="cache", REDIS_PASSWORD="p@:/ss", REDIS_DB="3")
    assert settings.redis_url == "redis://:p%40%3A%2Fss@cache:6379/3"
    settings = load(
        DATABASE_HOST="::1",
        DATABASE_USER="ap p",
        DATABASE_PASSWORD="#1",
        DATABASE_NAME="d/b",
        DATABASE_SSLMODE="require",
    )
    assert settings.database_url == "postgresql://ap%20p:%231@[::1]:5432/d%2Fb?sslmode=require"


def test_url_wins_over_its_parts() -> None:
    assert load(REDIS_URL="redis://a", REDIS_HOST="b").redis_url == "redis://a"


def test_database_host_without_a_name_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="DATABASE_NAME"):
        load(DATABASE_HOST="db", DATABASE_USER="app")


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "flotta.toml"
    file.write_text(
        'service = "tracker"\ndrain_s = 7\nready_requires = ["redis"]\n[postgres]\nsize_max = 4\n[run]\nx = 1\n'
    )
    settings = Settings.load({"FLOTTA_SERVICE": "other"}, file=file)
    assert settings.service == "other"
    assert (settings.drain_s, settings.stop_s) == (7.0, 12.0)
    assert settings.ready_requires == {"redis"}
    assert settings.postgres_size_max == 4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("drain = 3", "did you mean drain_s"),
        ("[postgres]\nsize_maxx = 3", "did you mean postgres.size_max"),
        ("drain_s = true", "drain_s"),
        ("[postgres]\nsize_max = 2.5", "postgres.size_max"),
        ("drain_s = [", "flotta.toml"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "flotta.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        Settings.load({}, file=file)


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a file that exists"):
        Settings.load({}, file=tmp_path / "none.toml")


def test_empty_variable_counts_as_not_set() -> None:
    assert load(REDIS_URL="", FLOTTA_DRAIN_S="") == load()


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="FLOTTA_STOP_S"):
        load(FLOTTA_DRAIN_S="10", FLOTTA_STOP_S="10")
    with pytest.raises(ConfigError, match="FLOTTA_POSTGRES_SIZE_MIN"):
        load(FLOTTA_POSTGRES_SIZE_MIN="11")
    with pytest.raises(ConfigError, match="FLOTTA_METRICS_PATH"):
        load(FLOTTA_METRICS_PATH="/health")


def test_missing_url_names_the_variable_and_both_cures() -> None:
    with pytest.raises(ConfigError) as caught:
        load().require_redis()
    assert {
        w for w in ("REDIS_URL", "REDIS_HOST", "FLOTTA_EMBEDDED=1", "flotta dev") if w not in str(caught.value)
    } == set()
    with pytest.raises(ConfigError) as caught:
        load().require_postgres()
    assert {w for w in ("DATABASE_URL", "DATABASE_HOST", "FLOTTA_EMBEDDED=1") if w not in str(caught.value)} == set()


def test_no_secret_in_repr_or_errors() -> None:
    settings = load(
        REDIS_HOST="h",
        REDIS_PASSWORD=CANARY,
        DATABASE_URL=f"postgresql://app:{CANARY.replace('@', '%40')}@db/app",
        FLOTTA_METRICS_TOKEN=f"t{CANARY}",
    )
    assert CANARY in str(settings.metrics_token)
    for text in (repr(settings), str(settings), repr(settings.shown()), repr(settings.redactor())):
        assert "c4n4ry" not in text
    for wrong in (
        {"REDIS_URL": f"http://u:{CANARY}@h"},
        {"DATABASE_URL": CANARY},
        {"FLOTTA_METRICS_TOKEN": f"has space {CANARY}"},
        {"REDIS_HOST": f"redis://:{CANARY}@h"},
        {"FLOTTA_REDIS_URL": f"redis://:{CANARY}@h"},
        {"FLOTTA_PASSWORD": CANARY},
    ):
        with pytest.raises(ConfigError) as caught:
            load(**wrong)
        assert "c4n4ry" not in str(caught.value)
        assert "c4n4ry" not in repr(caught.value)


@given(secret=st.text(min_size=4).filter(lambda s: s.strip() and len(s.encode("utf-8", "surrogatepass")) < 60))
@example(secret='quo"te\\back')
@example(secret="p@ss/w:rd?&=")
def test_redactor_finds_a_secret_in_every_spelling(secret: str) -> None:
    import json
    from urllib.parse import quote, quote_plus

    try:
        secret.encode()
    except UnicodeEncodeError:
        return
    redact = Redactor([secret])
    for spelling in {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], repr(secret)[1:-1]}:
        masked = redact(f"before {spelling} after")
        assert masked == "before *** after" or spelling not in masked.removeprefix("before ").removesuffix(" after")


def test_redactor_masks_credentials_that_it_does_not_know() -> None:
    redact = Redactor()
    assert redact("at redis://u:pw@host/0 and") == "at redis://u:***@host/0 and"
    assert redact("postgresql://u:p@w@host/db") == "postgresql://u:***@host/db"
    assert redact("GET /ws?access_token=abc&x=1") == "GET /ws?access_token=***&x=1"
    assert redact("plain = text; nothing=secret here: a@b") == "plain = text; nothing=secret here: a@b"


def test_redacted_url_of_no_url_shows_nothing() -> None:
    assert redact_url("hunter2") == "***"


def test_settings_are_frozen_and_can_be_replaced() -> None:
    with pytest.raises(AttributeError):
        load().drain_s = 1.0  # type: ignore[misc]
    assert replace(load(), drain_s=1.0).drain_s == 1.0


def test_the_reference_lists_every_setting() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
    rows = {
        line.split("|")[1].strip().strip("`"): line for line in page.read_text().splitlines() if line.startswith("| `")
    }
    for info in describe():
        row = rows.get(info.variable)
        assert row is not None, f"{info.variable} is missing in {page.name}"
        assert f"`{info.key}`" in row, info.variable
        assert info.doc in row, info.variable
        assert info.parser.allowed.replace("|", "\\|") in row, info.variable
