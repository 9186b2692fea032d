"""Migrations that a service has declared: run while its fleet starts, before anything reads the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from flotta.instance import Instance

if TYPE_CHECKING:
    from flotta.migrations import Report
    from flotta.postgres import Pool

__all__ = ["Schema"]


@final
@dataclass(frozen=True, slots=True)
class Schema:
    """One folder of migrations, and how its service wants them run."""

    folder: Path
    seeds: Path | None
    application: str | None
    """None: the service's name."""
    options: Mapping[str, Any]

    async def bring_up(self, where: Pool | str, instance: Instance, logger: Any) -> Report:
        """Migrates, or waits for the instance that does. Raises what `flotta.migrations.Migrations` does."""
        from flotta.migrations import Migrations  # noqa: PLC0415 - a part that is not used is not imported

        migrations = Migrations(
            self.folder,
            seeds=self.seeds,
            application=self.application or instance.service,
            instance=instance.id,
            logger=logger,
            **self.options,
        )
        return await migrations.run(where)
