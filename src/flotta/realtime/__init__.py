"""Socket.IO for a fleet: a server of our own, its clients joined with those of every other instance."""

from __future__ import annotations

from flotta.realtime.adapters import AdapterStats
from flotta.realtime.api.asgi_app import ASGIApp
from flotta.realtime.api.cluster import RemoteSocket
from flotta.realtime.api.namespace import Namespace
from flotta.realtime.client import Reason
from flotta.realtime.emitter import Emitter, EmitterOptions, SyncEmitter
from flotta.realtime.engine.options import EngineOptions
from flotta.realtime.engine.server import EngineServer, EngineStats
from flotta.realtime.options import ServerOptions
from flotta.realtime.presence import Online, Presence, PresenceChange
from flotta.realtime.relay.relay import RelayStats
from flotta.realtime.server import Server, ServerStats

__all__ = [
    "ASGIApp",
    "AdapterStats",
    "Emitter",
    "EmitterOptions",
    "EngineOptions",
    "EngineServer",
    "EngineStats",
    "Namespace",
    "Online",
    "Presence",
    "PresenceChange",
    "Reason",
    "RelayStats",
    "RemoteSocket",
    "Server",
    "ServerOptions",
    "ServerStats",
    "SyncEmitter",
]
