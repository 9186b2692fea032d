"""Typed values: what a map's user sees, and the bytes that travel.

Owns the codecs that come ready and the Protocol for the user's own. Invariants: ``decode(encode(v)) == v``; ``decode``
raises nothing but WireError, whatever the bytes (other programs write into the same map); ``encode`` is deterministic,
because ``test_and_set`` compares bytes in Redis.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, final

import msgpack  # type: ignore[import-untyped]  # it ships no types

from flotta.errors import WireError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "BYTES",
    "INT",
    "JSON",
    "MSGPACK",
    "TEXT",
    "Codec",
    "DataclassCodec",
    "ModelCodec",
    "PydanticModel",
]

V = TypeVar("V")


class Codec(Protocol[V]):
    """How values of one type travel. Both methods must be quick and must not wait."""

    def encode(self, value: V, /) -> bytes:
        """The bytes of ``value``, the same for equal values. Raises TypeError or ValueError if it has none."""
        ...

    def decode(self, data: bytes, /) -> V:
        """The value of ``data``. Raises WireError if it has none."""
        ...


@final
class _Text:
    """``str`` as UTF-8: what Go Pulse reads and writes."""

    def encode(self, value: str, /) -> bytes:
        if not isinstance(value, str):
            raise TypeError(f"a text value is a str, not {type(value).__name__}: choose another codec")
        return value.encode()

    def decode(self, data: bytes, /) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise WireError("text value", "is no UTF-8", data) from error


@final
class _Bytes:
    """``bytes`` as they are."""

    def encode(self, value: bytes, /) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a bytes value is bytes, not {type(value).__name__}: choose another codec")
        return bytes(value)

    def decode(self, data: bytes, /) -> bytes:
        return data


@final
class _Int:
    """``int`` of 64 bits in decimal text: what ``incr`` works on."""

    def encode(self, value: int, /) -> bytes:
        if type(value) is not int:  # True and False are ints too
            raise TypeError(f"an int value is an int, not {type(value).__name__}: choose another codec")
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{value} does not fit into 64 bits")
        return str(value).encode()

    def decode(self, data: bytes, /) -> int:
        digits = data.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 19:
            raise WireError("int value", "is no 64-bit integer", data)
        return int(data)


@final
class _Json:
    """Anything that JSON can hold: compact, keys sorted. A value that is read must not be changed in place."""

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()

    def decode(self, data: bytes, /) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WireError("JSON value", str(error), data) from error


@final
class _Msgpack:
    """Anything that MessagePack can hold. Equal dicts must have their keys in the same order to give the same bytes."""

    def encode(self, value: Any, /) -> bytes:
        packed = msgpack.packb(value)
        assert isinstance(packed, bytes), "packb without a stream gives bytes"
        return packed

    def decode(self, data: bytes, /) -> Any:
        try:
            return msgpack.unpackb(data)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            raise WireError("MessagePack value", str(error) or type(error).__name__, data) from error


TEXT: Codec[str] = _Text()
BYTES: Codec[bytes] = _Bytes()
INT: Codec[int] = _Int()
JSON: Codec[Any] = _Json()
MSGPACK: Codec[Any] = _Msgpack()

D = TypeVar("D", bound="DataclassInstance")


@final
class DataclassCodec(Codec[D]):
    """A dataclass as a JSON object of its fields. ``DataclassCodec(Flag)``.

    Fields hold what JSON can hold. Unknown fields are ignored and missing ones take their defaults, so that old and new
    instances of a service can share a map during a rollout.
    """

    def __init__(self, cls: type[D]) -> None:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"{cls!r} is no dataclass")
        self._cls = cls
        self._names = frozenset(field.name for field in dataclasses.fields(cls) if field.init)

    def encode(self, value: D, /) -> bytes:
        if not isinstance(value, self._cls):
            raise TypeError(f"the value is a {self._cls.__name__}, not {type(value).__name__}")
        fields = dataclasses.asdict(value)
        return JSON.encode({name: item for name, item in fields.items() if name in self._names})

    def decode(self, data: bytes, /) -> D:
        fields = JSON.decode(data)
        if not isinstance(fields, dict):
            raise WireError(f"{self._cls.__name__} value", "is no JSON object", data)
        try:
            return self._cls(**{name: item for name, item in fields.items() if name in self._names})
        except (TypeError, ValueError) as error:
            raise WireError(f"{self._cls.__name__} value", str(error), data) from error


class PydanticModel(Protocol):
    """The two methods of a pydantic v2 model that are needed; Flotta does not depend on pydantic."""

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, /) -> Self:
        """The model that the JSON text holds; raises ValueError."""
        ...

    def model_dump_json(self) -> str:
        """The model as JSON text."""
        ...


M = TypeVar("M", bound=PydanticModel)


@final
class ModelCodec(Codec[M]):
    """A pydantic v2 model as JSON, validated when it is read. ``ModelCodec(Device)``."""

    def __init__(self, cls: type[M]) -> None:
        self._cls = cls

    def encode(self, value: M, /) -> bytes:
        if not isinstance(value, self._cls):
            raise TypeError(f"the value is a {self._cls.__name__}, not {type(value).__name__}")
        return value.model_dump_json().encode()

    def decode(self, data: bytes, /) -> M:
        try:
            return self._cls.model_validate_json(data)
        except ValueError as error:
            raise WireError(f"{self._cls.__name__} value", str(error), data) from error
