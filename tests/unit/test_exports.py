"""The public surface is a list, held here: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import flotta

TOP = {
    "Fleet", "FlottaError", "Link", "Map", "Migrations", "Pool", "Redis", "Server", "Settings", "Stream",
    "WorkerPool", "__version__",
}  # fmt: skip


def _modules() -> list[str]:
    found = pkgutil.walk_packages(flotta.__path__, "flotta.")
    return [m.name for m in found if not m.name.endswith("__main__")]


def test_the_top_level_names_are_these() -> None:
    assert set(flotta.__all__) == TOP
    for name in TOP:
        assert getattr(flotta, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Flote'"):
        flotta.Flote  # noqa: B018


@pytest.mark.parametrize("name", _modules())
def test_every_module_says_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", None)
    assert offered is not None, f"{name} has no __all__"
    assert module.__doc__, f"{name} does not say what it owns"
    assert len(set(offered)) == len(offered)
    for each in offered:
        assert hasattr(module, each), f"{name}.__all__ names {each}, which is not there"
