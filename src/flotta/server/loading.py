"""From ``module:attribute`` to an ASGI application.

Three faults look alike in most servers and are told apart here: the module does not exist, it exists and has no such
attribute, it exists and its own code failed while it was imported (then its traceback, without our frames, is the
message).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from flotta.errors import AppLoadError
from flotta.server.config import Interface, ServeConfig

__all__ = ["LoadedApp", "load_app", "shadowed"]

_ASGI_ARGUMENTS: Final = 3
_WSGI_ARGUMENTS: Final = 2


@final
@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An application and how it wants to be called."""

    app: Any
    interface: Interface
    """asgi or wsgi."""


def load_app(config: ServeConfig) -> LoadedApp:
    """Imports the application that ``config`` names. Raises `AppLoadError`."""
    directory = str(Path(config.app_dir).resolve())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    module_name, colon, attribute = config.app.partition(":")
    if not module_name or not colon or not attribute:
        raise AppLoadError(config.app, "it is not of the form module:attribute", "Write for example main:app.")
    app = _attribute(config, _module(config, module_name), attribute)
    if config.factory:
        app = _call_factory(config, app)
    return LoadedApp(app, _interface(config, app))


def _module(config: ServeConfig, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Is it the module itself (or a package above it) that is missing, or one that it imports?
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AppLoadError(config.app, f"there is no module {error.name!r}", _module_cure(config, name)) from None
        raise _own_failure(config, error, f"importing {name!r} failed") from error
    except Exception as error:
        raise _own_failure(config, error, f"importing {name!r} failed") from error
    except SystemExit as error:
        raise _own_failure(config, error, f"importing {name!r} ended with sys.exit({error.code!r})") from error


def _module_cure(config: ServeConfig, name: str) -> str:
    folder = Path(config.app_dir).resolve()
    if name.endswith(".py") or "/" in name:
        return f"Write the module's name, not its file: {Path(name).stem.replace('/', '.')}:..."
    present = [path.stem for path in folder.glob("*.py")] + [path.parent.name for path in folder.glob("*/__init__.py")]
    close = difflib.get_close_matches(name, present, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}It was looked for in {folder} and on sys.path; --app-dir names another folder."


def _attribute(config: ServeConfig, module: types.ModuleType, dotted: str) -> Any:
    found: Any = module
    for name in dotted.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            owner = f"module {module.__name__!r}" if found is module else f"{type(found).__name__!r} object"
            close = difflib.get_close_matches(name, [n for n in dir(found) if not n.startswith("_")], n=1)
            cure = f"Did you mean {close[0]}?" if close else "Name the variable that holds the application."
            raise AppLoadError(config.app, f"{owner} has no attribute {name!r}", cure) from None
    return found


def _call_factory(config: ServeConfig, factory: Any) -> Any:
    if not callable(factory):
        raise AppLoadError(config.app, "the factory cannot be called", "Leave --factory away if it is the application.")
    try:
        app = factory()
    except Exception as error:
        raise _own_failure(config, error, "the factory failed") from error
    if inspect.iscoroutine(app):
        app.close()
        raise AppLoadError(
            config.app, "the factory is an async function", "Make it a plain one; await in the lifespan."
        )
    return app


def _own_failure(config: ServeConfig, error: BaseException, what: str) -> AppLoadError:
    """The application's own exception, its traceback beginning in its own code."""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame):
        trace = trace.tb_next
    if trace is not None:
        error.__traceback__ = trace
    return AppLoadError(config.app, f"{what} with {type(error).__name__}: {error}", "Its traceback is shown with this.")


def _is_ours(frame: types.FrameType) -> bool:
    name = frame.f_code.co_filename
    return name == __file__ or "importlib" in name


def _interface(config: ServeConfig, app: Any) -> Interface:
    if not callable(app):
        reason = f"it is a {type(app).__name__}, which cannot be called"
        raise AppLoadError(config.app, reason, "Name the application object, or use --factory for what makes it.")
    if config.interface != "auto":
        return config.interface
    call = _callable_of(app)
    if call is not None and inspect.iscoroutinefunction(call):
        return "asgi"
    count = None if call is None else _argument_count(call)
    if count == _ASGI_ARGUMENTS:
        return "asgi"
    if count == _WSGI_ARGUMENTS:
        return "wsgi"
    if count == 0:
        raise AppLoadError(
            config.app, "it takes no arguments, so it is no application", "Is it a factory? Add --factory."
        )
    reason = "it is neither async (scope, receive, send) nor (environ, start_response)"
    raise AppLoadError(config.app, reason, "Say which it is: --interface asgi or --interface wsgi.")


def _callable_of(app: Any) -> Callable[..., Any] | None:
    """The function that a call of ``app`` runs; None for a class, which a call would only make."""
    if inspect.isclass(app):
        return None
    if inspect.isfunction(app) or inspect.ismethod(app) or isinstance(app, functools.partial):
        return app
    return getattr(app, "__call__", None)  # noqa: B004 - its signature is wanted, not whether it exists


def _argument_count(call: Callable[..., Any]) -> int | None:
    """How many positional arguments ``call`` needs; None if that cannot be said."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.default is p.empty for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def shadowed(app: Any, paths: Iterable[str]) -> list[str]:
    """Which of ``paths`` the application has a route for, as far as Starlette's and Flask's tables say."""
    routes = {getattr(route, "path", None) for route in getattr(app, "routes", None) or ()}
    url_map = getattr(app, "url_map", None)
    if url_map is not None:
        routes |= {rule.rule for rule in url_map.iter_rules()}
    return [path for path in paths if path in routes]
