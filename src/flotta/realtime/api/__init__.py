"""What users call on a `Server`, one file for each concern; `Server` is made of them."""

from __future__ import annotations

__all__: list[str] = []
