"""The exact versions suit every Python that the project promises, down to the first 3.11."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def test_every_pinned_version_accepts_the_oldest_python() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    asked = 0
    for name, version in pinned.items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        assert found.version == version, f"{name} {found.version} is installed, {version} is pinned"
        asked += 1
        needed = found.metadata["Requires-Python"] or ""
        assert SpecifierSet(needed).contains("3.11.0"), f"{name} {version} needs Python {needed}: pin an older one"
    assert asked > 50
