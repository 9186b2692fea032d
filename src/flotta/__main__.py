"""``python -m flotta``: the same as the command ``flotta``."""

from __future__ import annotations

from flotta.cli import main

__all__: list[str] = []

main()
