"""Every seed and every input that once broke a parser, and a short fuzz of each target."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from targets import TARGETS  # noqa: E402

import fuzz  # noqa: E402 - its folder is no package

FUZZ_S = float(os.environ.get("FLOTTA_FUZZ_S", "8"))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_former_finds_break_nothing(name: str) -> None:
    found = [path.read_bytes() for path in sorted((HERE / "corpus" / name).glob("*"))]
    for data in (*TARGETS[name].seeds, *found, b""):
        TARGETS[name].run(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_random_input_breaks_nothing() -> None:
    good, said = fuzz.run("everything", FUZZ_S, None)
    assert good, said[-3000:]
    assert int(fuzz.executions(said)) > 100
