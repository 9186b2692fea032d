"""Migrations for a fleet: of N instances that start together one brings the schema up to date, the others wait.

::

    migrations = Migrations("migrations", seeds="seeds", application="harbor", instance="api-1")
    report = await migrations.run("postgresql://app:secret@db/app")

Plain SQL files in the order of their numbers, each in a transaction with its row in the ledger.
"""

from __future__ import annotations

from flotta.migrations.gate import Migrations, Report, Status
from flotta.migrations.ledger import Run

__all__ = ["Migrations", "Report", "Run", "Status"]
