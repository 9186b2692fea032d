"""From module:attribute to an application: what is told apart, and what each message offers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flotta.errors import AppLoadError, ConfigError
from flotta.server import ServeConfig
from flotta.server.loading import load_app


@pytest.fixture
def folder(tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder on sys.path and a module name that no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"app_{unique}"
    before = set(sys.modules)
    yield tmp_path, name
    for module in set(sys.modules) - before:
        del sys.modules[module]


def load(folder: tuple[Path, str], source: str, attribute: str = "app", **options: Any) -> Any:
    path, name = folder
    (path / f"{name}.py").write_text(source)
    return load_app(ServeConfig(app=f"{name}:{attribute}", app_dir=str(path), **options))


ASGI = "async def app(scope, receive, send): ..."
WSGI = "def app(environ, start_response): return []"


@pytest.mark.parametrize(
    ("source", "interface"),
    [
        (ASGI, "asgi"),
        (WSGI, "wsgi"),
        ("class A:\n    async def __call__(self, scope, receive, send): ...\napp = A()", "asgi"),
        ("class A:\n    def __call__(self, scope, receive, send): ...\napp = A()", "asgi"),
        ("class A:\n    def __call__(self, environ, start_response): ...\napp = A()", "wsgi"),
        ("class A:\n    async def run(self, scope, receive, send): ...\napp = A().run", "asgi"),
        ("from flask import Flask\napp = Flask(__name__)", "wsgi"),
        ("from fastapi import FastAPI\napp = FastAPI()", "asgi"),
        ("import functools\ndef f(a, environ, start_response): ...\napp = functools.partial(f, 1)", "wsgi"),
    ],
)
def test_interface_is_seen(folder: tuple[Path, str], source: str, interface: str) -> None:
    assert load(folder, source).interface == interface


def test_factory_is_called_and_attributes_may_be_dotted(folder: tuple[Path, str]) -> None:
    assert load(folder, f"def make():\n    {ASGI}\n    return app", "make", factory=True).interface == "asgi"
    path, name = folder
    (path / f"{name}_2.py").write_text(f"class box:\n    inner = None\n{ASGI}\nbox.inner = app")
    assert load_app(ServeConfig(app=f"{name}_2:box.inner", app_dir=str(path))).interface == "asgi"


@pytest.mark.parametrize(
    ("source", "attribute", "options", "said"),
    [
        (ASGI, "ap", {}, "has no attribute 'ap'. Did you mean app?"),
        (ASGI, "app.x", {}, "'function' object has no attribute 'x'"),
        ("app = 3", "app", {}, "it is a int, which cannot be called"),
        ("def app(): ...", "app", {}, "Is it a factory? Add --factory."),
        ("def app(*args): ...", "app", {}, "--interface asgi or --interface wsgi"),
        ("class app: ...", "app", {}, "--interface asgi or --interface wsgi"),
        ("app = 3", "app", {"factory": True}, "the factory cannot be called"),
        ("async def app(): ...", "app", {"factory": True}, "the factory is an async function"),
        ("def app(): raise KeyError('x')", "app", {"factory": True}, "the factory failed with KeyError"),
        ("import nonsuch_module", "app", {}, "failed with ModuleNotFoundError: No module named 'nonsuch_module'"),
        ("import sys; sys.exit(4)", "app", {}, "ended with sys.exit(4)"),
        ("1 +", "app", {}, "failed with SyntaxError"),
    ],
)
def test_each_fault_is_named_with_its_cure(
    folder: tuple[Path, str], source: str, attribute: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(AppLoadError) as caught:
        load(folder, source, attribute, **options)
    assert said in str(caught.value)


def test_missing_module_is_told_from_one_that_misses_a_module(folder: tuple[Path, str]) -> None:
    path, name = folder
    (path / f"{name}.py").write_text(ASGI)
    with pytest.raises(AppLoadError, match=f"Did you mean {name}") as caught:
        load_app(ServeConfig(app=f"{name}x:app", app_dir=str(path)))
    assert caught.value.__cause__ is None
    with pytest.raises(AppLoadError, match=f"not its file: {name}:"):
        load_app(ServeConfig(app=f"{name}.py:app", app_dir=str(path)))
    with pytest.raises(AppLoadError, match="module:attribute"):
        load_app(ServeConfig(app=name, app_dir=str(path)))


def test_traceback_begins_in_the_applications_code(folder: tuple[Path, str]) -> None:
    with pytest.raises(AppLoadError) as caught:
        load(folder, "def part():\n    return 1 / 0\npart()")
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert cause.__traceback__ is not None
    assert Path(cause.__traceback__.tb_frame.f_code.co_filename).parent == folder[0]


def test_given_interface_is_believed(folder: tuple[Path, str]) -> None:
    assert load(folder, "def app(*args): ...", interface="wsgi").interface == "wsgi"


def test_serve_config_travels_as_json() -> None:
    config = ServeConfig(
        app="a:b", fds=(3, 4), drain_s=2.5, ssl_certfile="c", ssl_keyfile="k", ssl_keyfile_password="p"
    )
    assert ServeConfig.from_json(config.to_json()) == config
    assert "'p'" not in repr(config)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"app": "a:b", "colour": 1}', '{"app": "a:b", "port": 70000}'])
def test_wrong_serve_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        ServeConfig.from_json(text)
