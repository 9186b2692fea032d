"""What a pool does by the clock: tickers, tasks that come round, schedulers."""

from __future__ import annotations

__all__: list[str] = []
