"""Which changed files restart the instances: Python sources under the watched folders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from flotta.errors import ConfigError

__all__ = ["changes"]


async def changes(folders: Sequence[Path]) -> AsyncIterator[list[str]]:
    """Yields the changed files, relative to the working folder, as often as some change.

    Changes that come in one burst (a branch is switched) are one. Cancelling it stops the watching. Raises ConfigError
    without ``watchfiles``.
    """
    try:
        import watchfiles  # noqa: PLC0415 - only --reload needs it
    except ImportError as error:
        raise ConfigError("--reload", "on", 'watchfiles, from: pip install "flotta[server]"') from error
    here = Path.cwd()
    async for changed in watchfiles.awatch(*folders, watch_filter=watchfiles.PythonFilter(), debounce=400, step=50):
        yield sorted(_relative(Path(path), here) for _, path in changed)


def _relative(path: Path, here: Path) -> str:
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
