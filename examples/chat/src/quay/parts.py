"""The parts of one instance of Quay, the same on every framework.

The fleet starts Redis, PostgreSQL, the migrations and seeds (on one of N instances, while the others wait) and the
realtime server; then `_open` runs, then the instance is ready.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

from flotta.fleet import Fleet
from flotta.realtime import ServerOptions
from quay.accounts.accounts import Accounts
from quay.config import Config
from quay.live.online import TTL_S, Online
from quay.live.sockets import Sockets
from quay.live.telling import Telling
from quay.rooms.messages import Messages
from quay.rooms.rooms import Rooms

__all__ = ["Quay"]

HOME = Path(__file__).parents[2]
EVENT_BYTES_MAX = 32_768
EVENTS_PER_S_MAX = 30.0


@final
class Quay:
    """One instance."""

    def __init__(self, config: Config, *, framework: str) -> None:
        self.config = config
        self.fleet = fleet = Fleet(service="quay")
        fleet.migrations(HOME / "migrations", seeds=HOME / "seeds")
        self.server = fleet.realtime(
            options=ServerOptions(
                adapter=config.adapter,
                presence=True,
                presence_ttl_s=TTL_S,
                payload_bytes_max=EVENT_BYTES_MAX,
                messages_per_s_max=EVENTS_PER_S_MAX,
            )
        )
        self.accounts = Accounts(fleet, config)
        self.rooms = Rooms(fleet)
        self.messages = Messages(fleet, self.rooms)
        self.telling = Telling(self.server, self.rooms, self.messages)
        self.online = Online(fleet, self.server)
        self.sockets = Sockets(
            fleet,
            self.server,
            framework=framework,
            accounts=self.accounts,
            rooms=self.rooms,
            telling=self.telling,
            online=self.online,
        )
        fleet.on_start(self._open)
        fleet.on_stop(self._close)
        fleet.background(self.online.keep)

    async def _open(self) -> None:
        await self.accounts.open()
        await self.online.open()

    async def _close(self) -> None:
        await self.online.aclose()
        await self.accounts.aclose()
