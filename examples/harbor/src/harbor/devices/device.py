"""What a device is, and the check of what somebody says about one. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["KINDS", "Device", "DeviceError", "checked_device"]

KINDS = frozenset({"tug", "passenger", "cargo", "tanker", "pleasure", "fishing", "other"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_SIZE_M_MAX = 500.0


class DeviceError(Exception):
    """What was said about a device is wrong; ``code`` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device as its owner describes it. Sizes in metres."""

    id: str
    name: str = ""
    kind: str = "other"
    callsign: str = ""
    length_m: float | None = None
    width_m: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def checked_device(said: object) -> Device:
    """The device that a JSON object describes. Raises `DeviceError`."""
    if not isinstance(said, dict):
        raise DeviceError("not_an_object", "A device is a JSON object.")
    device_id = said.get("id")
    if not isinstance(device_id, str) or not _ID.fullmatch(device_id):
        raise DeviceError("id_wrong", "id has 1 to 64 letters, digits and . _ : - and begins with a letter or digit.")
    kind = said.get("kind", "other")
    if kind not in KINDS:
        raise DeviceError("kind_wrong", f"kind is one of {', '.join(sorted(KINDS))}.")
    return Device(
        id=device_id,
        name=_text(said, "name", 80),
        kind=str(kind),
        callsign=_text(said, "callsign", 16),
        length_m=_size(said, "length_m"),
        width_m=_size(said, "width_m"),
    )


def _text(said: dict[str, Any], name: str, length_max: int) -> str:
    value = said.get(name, "")
    if not isinstance(value, str) or len(value) > length_max or "\0" in value:
        raise DeviceError(f"{name}_wrong", f"{name} is a text of at most {length_max} characters.")
    return value.strip()


def _size(said: dict[str, Any], name: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _SIZE_M_MAX:
        raise DeviceError(f"{name}_wrong", f"{name} is above 0 and at most {_SIZE_M_MAX:.0f} metres.")
    return float(value)
