"""The page of errors tells of every error and of every fact that it carries."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from flotta import errors

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
ROWS = {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)`(?: \(`\w+`\))? \|.*$", PAGE, re.MULTILINE)}
ERRORS = sorted(name for name in errors.__all__ if issubclass(getattr(errors, name), BaseException))


def own_attributes(name: str) -> set[str]:
    """What the class itself puts on its instances."""
    body = ast.parse(inspect.getsource(getattr(errors, name)))
    targets = [target for node in ast.walk(body) if isinstance(node, ast.Assign) for target in node.targets]
    return {target.attr for target in targets if isinstance(target, ast.Attribute)}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_its_row_with_its_attributes(name: str) -> None:
    assert name in ROWS, f"{name} is missing"
    unnamed = {attribute for attribute in own_attributes(name) if f"`{attribute}`" not in ROWS[name]}
    assert not unnamed


@pytest.mark.parametrize("name", ERRORS)
def test_a_row_names_the_errors_of_python_that_the_class_is_too(name: str) -> None:
    bases = getattr(errors, name).__bases__
    builtin = {base.__name__ for base in bases if base.__module__ == "builtins" and base is not Exception}
    assert all(f"`{name}` (`{base}`)" in ROWS[name] for base in builtin)


def test_outcomes_are_explained() -> None:
    assert {outcome.name for outcome in errors.Outcome} <= ROWS.keys()


def test_everything_public_is_on_the_page_and_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert f"`{name}`" in PAGE
        assert name == "Outcome" or re.search(rf"(^    |── ){name}\b", errors.__doc__, re.MULTILINE)
    known = {name for name in ROWS if name[0].isupper() and not name.isupper()}
    assert known <= set(errors.__all__), "the page tells of an error that is not there"
