"""Handles that a service declares by name: the same name is the same handle, with the same options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar, final

from flotta.errors import ConfigError

__all__ = ["Declared"]

T = TypeVar("T")


@final
class Declared(Generic[T]):
    """The handles of one ``kind`` and the options with which each was declared."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._known: dict[str, tuple[T, Mapping[str, Any]]] = {}

    @property
    def handles(self) -> tuple[T, ...]:
        return tuple(handle for handle, _ in self._known.values())

    def find(self, name: str, options: Mapping[str, Any]) -> T | None:
        """The handle ``name``, None if it is new. Raises `ConfigError` if it was declared with other options."""
        if name not in self._known:
            return None
        handle, before = self._known[name]
        other = {key: value for key, value in options.items() if before[key] != value}
        if other:
            first = {key: before[key] for key in other}
            raise ConfigError(
                f"fleet.{self._kind}({name!r})", other, f"the options of its first use, {first}", source="code"
            )
        return handle

    def add(self, name: str, options: Mapping[str, Any], handle: T) -> T:
        self._known[name] = (handle, options)
        return handle
