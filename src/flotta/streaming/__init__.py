"""Event streams in Redis, shared with Go Pulse: add events, read them with a cursor, or share them in a sink."""

from __future__ import annotations

from flotta.rmap.codec import BYTES, JSON, MSGPACK, TEXT, Codec, DataclassCodec
from flotta.streaming.deadletters import DeadLetter
from flotta.streaming.description import SinkInfo, StreamInfo
from flotta.streaming.event import Event, Start, TopicFilter
from flotta.streaming.options import ReaderOptions, ReaderStats, SinkOptions, SinkStats
from flotta.streaming.reader import Reader
from flotta.streaming.retention import RetentionPolicy, RetentionStats
from flotta.streaming.sink import Sink
from flotta.streaming.stream import Item, Stream

__all__ = [
    "BYTES",
    "JSON",
    "MSGPACK",
    "TEXT",
    "Codec",
    "DataclassCodec",
    "DeadLetter",
    "Event",
    "Item",
    "Reader",
    "ReaderOptions",
    "ReaderStats",
    "RetentionPolicy",
    "RetentionStats",
    "Sink",
    "SinkInfo",
    "SinkOptions",
    "SinkStats",
    "Start",
    "Stream",
    "StreamInfo",
    "TopicFilter",
]
