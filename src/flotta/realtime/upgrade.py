"""A WebSocket that wants to take over a polling session: the receiver of that WebSocket until it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, final

from flotta.realtime.engine.client import EngineClient
from flotta.realtime.engineio.upgrade import ANSWER, Step, Upgrading
from flotta.realtime.transports import Transport

__all__ = ["Upgrade"]

UPGRADE_TIMEOUT_S = 10.0


@final
class Upgrade:
    """Feeds the machine; a `Receiver`. After the switch it passes everything on to the client."""

    __slots__ = ("_client", "_machine", "_on_switch", "_timer", "_transport")

    def __init__(
        self,
        client: EngineClient,
        transport: Transport,
        loop: asyncio.AbstractEventLoop,
        on_switch: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._on_switch = on_switch
        self._transport = transport
        self._machine = Upgrading()
        # A session is upgraded once, by one WebSocket at a time: any other is closed as soon as it is open.
        possible = client.upgrade is None and client.transport.name == "polling"
        self._timer = loop.call_later(UPGRADE_TIMEOUT_S if possible else 0.0, self.give_up)
        if possible:
            client.upgrade = self

    @property
    def over(self) -> bool:
        """Nothing more is to be read."""
        return self._client.over if self._switched else self._machine.over

    @property
    def _switched(self) -> bool:
        return self._client.transport is self._transport

    def receive(self, data: str | bytes) -> None:
        """A message on the new transport."""
        if self._switched:
            self._client.receive(data)
            return
        if self._client.upgrade is not self:
            return
        step = self._machine.on_received(data)
        if step is Step.ANSWER:
            self._transport.write_control(ANSWER)
            self._client.transport.release_polls(on=True)
        elif step is Step.SWITCH:
            self._timer.cancel()
            self._client.upgrade = None
            self._client.switch(self._transport)
            if self._on_switch is not None:
                self._on_switch()
        elif step is Step.FAIL:
            self._fail()

    def give_up(self) -> None:
        """The time is over, or the session has ended."""
        if self._machine.on_given_up() is Step.FAIL:
            self._fail()

    def _fail(self) -> None:
        self._timer.cancel()
        if self._client.upgrade is self:
            self._client.upgrade = None
            self._client.transport.release_polls(on=False)
        self._transport.close(1002, "upgrade failed")

    def lost(self, reason: str) -> None:
        """The new transport is gone."""
        if self._switched:
            self._client.lost(reason)
        else:
            self.give_up()

    def close(self, reason: str, code: int = 1000) -> None:
        """The new transport wants the end."""
        if self._switched:
            self._client.close(reason, code)
        else:
            self.give_up()

    def environ(self) -> dict[str, Any]:
        """The request that opened the session."""
        return self._client.environ()
