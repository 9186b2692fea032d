"""A planted canary: no password of Redis or PostgreSQL and no token reaches a log, an answer, an error or a metric."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from flotta.postgres import EmbeddedPostgres
from flotta.redis.embedded import EmbeddedRedis
from server_process import WorkerProcess

CANARY = "c4n4ry/p@ss:w?rd"
TOKEN = "c4n4ry-token-for-metrics"

APP = """
import logging, os
import structlog
from fastapi import FastAPI
from flotta import Fleet

fleet = Fleet()
app = FastAPI(lifespan=fleet.lifespan)
log = structlog.get_logger("app")

@app.get("/leak")
async def leak():
    url = os.environ["DATABASE_URL"]
    log.info("connecting", url=url, password=os.environ["CANARY"], nested={"url": os.environ["REDIS_URL"]})
    log.warning("the raw password is " + os.environ["CANARY"])
    logging.getLogger("library").error("cannot reach %s with %r", os.environ["REDIS_URL"], os.environ["CANARY"])
    logging.getLogger("library").error("settings: %s", fleet.settings)
    return {}

@app.get("/crash")
async def crash():
    raise RuntimeError("cannot use " + os.environ["DATABASE_URL"] + " token " + os.environ["FLOTTA_METRICS_TOKEN"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "leaky.py").write_text(APP)
    return tmp_path


@pytest.fixture
def guarded_redis(own_valkey: EmbeddedRedis) -> str:
    """URL of a Valkey that asks for the canary."""
    import redis

    with redis.Redis.from_url(own_valkey.url) as admin:
        admin.config_set("requirepass", CANARY)
    return own_valkey.url.replace("://", f"://:{quote(CANARY, safe='')}@")


@pytest.fixture
def guarded_postgres(database_url: str, postgres_server: EmbeddedPostgres, unique: str) -> str:
    """URL of a PostgreSQL role whose password is the canary."""
    role = f"canary_{unique}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(CANARY)))
    head, _, tail = database_url.partition("://")
    return f"{head}://{role}:{quote(CANARY, safe='')}@{tail.partition('@')[2] or tail}"


def assert_clean(text: str) -> None:
    for secret in ("c4n4ry", quote(CANARY, safe=""), "p@ss", "p%40ss"):
        assert secret not in text


@pytest.mark.parametrize("form", ["json", "console"])
def test_canary_is_in_no_log_answer_or_metric(
    folder: Path, guarded_redis: str, guarded_postgres: str, own_valkey: EmbeddedRedis, form: str
) -> None:
    environ = {
        "REDIS_URL": guarded_redis,
        "DATABASE_URL": guarded_postgres,
        "FLOTTA_METRICS_TOKEN": TOKEN,
        "FLOTTA_LOG_FORMAT": form,
        "FLOTTA_LOG_LEVEL": "debug",
        "CANARY": CANARY,
    }
    with WorkerProcess(folder, "leaky:app", config={"access_log": True}, **environ) as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/leak").status_code == 200
            assert http.get("/crash").status_code == 500
            http.get(f"/nothing?token={TOKEN}")
            answers = [http.get("/metrics").text, http.get("/health").text]
            own_valkey.kill()
            answers.append(http.get("/health").text)
        worker.terminate()
        worker.wait()
        log = worker.log()
        assert "cannot use" in log, "the crash must be in the log, without its secret"
        assert "the raw password is" in log
        for text in (log, *answers, repr(worker.messages)):
            assert_clean(text)


@pytest.mark.parametrize("broken", ["REDIS_URL", "DATABASE_URL"])
def test_canary_is_in_no_error_when_a_server_refuses_it(
    folder: Path, valkey_url: str, postgres_server: EmbeddedPostgres, guarded_redis: str, broken: str
) -> None:
    wrong = quote(CANARY + "wrong", safe="")
    environ = {
        "REDIS_URL": guarded_redis if broken != "REDIS_URL" else guarded_redis.replace(quote(CANARY, safe=""), wrong),
        "DATABASE_URL": f"postgresql://nobody:{wrong}@127.0.0.1:1/none",
        "FLOTTA_START_TIMEOUT_S": "1",
        "CANARY": CANARY,
    }
    with WorkerProcess(folder, "leaky:app", **environ) as worker:
        failed = worker.wait_for("failed")
        worker.wait()
        assert failed["reason"]
        assert_clean(worker.log())
        assert_clean(repr(failed))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", f"http://:{CANARY}@host"),
        ("DATABASE_URL", CANARY),
        ("FLOTTA_METRICS_TOKEN", f"{TOKEN} with spaces"),
        ("FLOTTA_REDISURL", f"redis://:{CANARY}@host"),
    ],
)
def test_canary_is_in_no_message_about_a_wrong_setting(folder: Path, variable: str, value: str) -> None:
    with WorkerProcess(folder, "leaky:app", **{variable: value}) as worker:
        failed = worker.wait_for("failed")
        assert worker.wait() == 3
        assert variable in failed["reason"]
        assert_clean(worker.log())
        assert_clean(repr(failed))
