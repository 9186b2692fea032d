"""Replicated maps: every instance holds a copy, reads are local, writes are atomic in Redis. Shared with Go Pulse."""

from __future__ import annotations

from flotta.rmap.codec import BYTES, INT, JSON, MSGPACK, TEXT, Codec, DataclassCodec, ModelCodec
from flotta.rmap.events import Events, MapEvent, Watch
from flotta.rmap.follower import FollowerStats
from flotta.rmap.map import Map
from flotta.rmap.options import MapOptions
from flotta.rmap.results import Attempt, MapState, Removal
from flotta.rmap.wire import EventKind

__all__ = [
    "BYTES",
    "INT",
    "JSON",
    "MSGPACK",
    "TEXT",
    "Attempt",
    "Codec",
    "DataclassCodec",
    "EventKind",
    "Events",
    "FollowerStats",
    "Map",
    "MapEvent",
    "MapOptions",
    "MapState",
    "ModelCodec",
    "Removal",
    "Watch",
]
