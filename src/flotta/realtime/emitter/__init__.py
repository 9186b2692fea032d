"""Emitters: what any process says to the clients of a cluster, without a server and without being counted as one."""

from __future__ import annotations

from flotta.realtime.emitter.asynchronous import Emitter
from flotta.realtime.emitter.commands import EmitterOptions
from flotta.realtime.emitter.synchronous import SyncEmitter

__all__ = ["Emitter", "EmitterOptions", "SyncEmitter"]
