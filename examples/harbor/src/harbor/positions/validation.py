"""Which reports are accepted. Pure: no clock, no server; time comes in as a number.

Two steps: `parse` looks at one report alone, `plan` at the reports of one request together with the last known fixes.
A report that repeats a known device and time is a duplicate, not an error: whoever lost our answer repeats the request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from harbor.positions.fix import Fix, distance_nm

__all__ = ["Limits", "Plan", "Refusal", "parse", "plan"]

HOUR_MS = 3_600_000
SPEED_SAID_KN_MAX = 102.2  # the largest speed that an AIS report can say
JITTER_NM = 0.06
"""A standing receiver's positions wander by a hundred metres; that is no speed."""
NULL_ISLAND_DEG = 1e-4
TIME_S_MAX = 253_402_300_799  # the last second of the year 9999: later ones have no calendar date
HEADING_UNKNOWN = 511  # AIS: not available
# RFC 3339, the part of ISO 8601 that leaves no doubt: a date, a time and an offset.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What can be true."""

    age_max_s: float
    future_max_s: float
    speed_kn_max: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the report at ``index`` was not accepted. ``code`` is for programs."""

    index: int
    code: str
    message: str
    device: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {"index": self.index, "device": self.device, "code": self.code, "message": self.message}


@dataclass(slots=True)
class Plan:
    """What to do with the reports of one request."""

    accepted: list[Fix] = field(default_factory=list)
    repeated: dict[str, Fix] = field(default_factory=dict)
    """Known fixes, by device, that were reported again: perhaps because the instance that had them died."""
    duplicates: int = 0
    refused: list[Refusal] = field(default_factory=list)

    @property
    def shown(self) -> list[Fix]:
        """What pages are told, in the order of time: what is new, and what may not have been told before."""
        return sorted([*self.accepted, *self.repeated.values()], key=lambda fix: fix.time_ms)


class _Wrong(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def parse(index: int, said: object, *, device: str | None, now_ms: int, limits: Limits) -> Fix | Refusal:
    """The fix that one report says, if it can be true by itself. ``device`` is the one whose token came along; None:
    the report names it."""
    if not isinstance(said, dict):
        return Refusal(index, "not_an_object", "A position is a JSON object.", device)
    try:
        return _parse(said, device, now_ms, limits)
    except _Wrong as wrong:
        named = said.get("device")
        return Refusal(index, wrong.code, str(wrong), named[:64] if isinstance(named, str) else device)


def _parse(said: dict[str, Any], device: str | None, now_ms: int, limits: Limits) -> Fix:
    name = _device(said, device)
    lat = _number(said, "lat", -90, 90)
    lon = _number(said, "lon", -180, 180)
    if abs(lat) < NULL_ISLAND_DEG and abs(lon) < NULL_ISLAND_DEG:
        raise _Wrong("null_island", "0, 0 is what a receiver without reception says.")
    return Fix(
        device=name,
        time_ms=_time_ms(said.get("time"), now_ms, limits),
        lat=lat,
        lon=lon,
        speed_kn=_optional(said, "speed", 0, SPEED_SAID_KN_MAX),
        course_deg=_optional(said, "course", 0, 360),
        heading_deg=_heading(said),
    )


def plan(
    reports: Sequence[Fix | Refusal],
    *,
    last: Mapping[str, Fix],
    may_report: Callable[[str], bool],
    limits: Limits,
) -> Plan:
    """Which of the parsed reports to accept, given each device's last known fix and the devices that the caller may
    report for. Reports of one device are taken in the order of their times."""
    result = Plan()
    newest = dict(last)
    seen: set[tuple[str, int]] = {(fix.device, fix.time_ms) for fix in last.values()}
    for index, report in _by_time(reports):
        if isinstance(report, Refusal):
            result.refused.append(report)
        elif not may_report(report.device):
            message = "This token does not report for such a device."
            result.refused.append(Refusal(index, "unknown_device", message, report.device))
        elif (report.device, report.time_ms) in seen:
            result.duplicates += 1
            known = last.get(report.device)
            if known is not None and known.time_ms == report.time_ms:
                result.repeated[report.device] = known
        elif (speed_kn := _needed_speed_kn(newest.get(report.device), report)) > limits.speed_kn_max:
            message = f"To be there it would have needed {speed_kn:.0f} knots since its last position."
            result.refused.append(Refusal(index, "impossible_speed", message, report.device))
        else:
            seen.add((report.device, report.time_ms))
            result.accepted.append(report)
            known = newest.get(report.device)
            if known is None or report.time_ms > known.time_ms:
                newest[report.device] = report
    result.refused.sort(key=lambda refusal: refusal.index)
    return result


def _by_time(reports: Sequence[Fix | Refusal]) -> Iterable[tuple[int, Fix | Refusal]]:
    return sorted(enumerate(reports), key=lambda item: item[1].time_ms if isinstance(item[1], Fix) else 0)


def _needed_speed_kn(known: Fix | None, report: Fix) -> float:
    """How fast the device must have been between the two fixes, whichever is the older one."""
    if known is None:
        return 0.0
    distance = max(0.0, distance_nm(known, report) - JITTER_NM)
    elapsed_h = abs(report.time_ms - known.time_ms) / HOUR_MS
    return 0.0 if distance == 0 else math.inf if elapsed_h == 0 else distance / elapsed_h


def _device(said: dict[str, Any], device: str | None) -> str:
    name = said.get("device", device)
    if not isinstance(name, str) or not 1 <= len(name) <= 64:
        raise _Wrong("device_missing", "device must name the device.")
    if device is not None and name != device:
        raise _Wrong("unknown_device", "This token does not report for such a device.")
    return name


def _number(said: dict[str, Any], name: str, low: float, high: float) -> float:
    value = said.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(f"{name}_missing", f"{name} must be a number.")
    if not low <= value <= high:  # false for NaN too
        raise _Wrong(f"{name}_wrong", f"{name} is between {low:g} and {high:g}.")
    return float(value)


def _optional(said: dict[str, Any], name: str, low: float, high: float) -> float | None:
    return None if said.get(name) is None else _number(said, name, low, high)


def _heading(said: dict[str, Any]) -> float | None:
    return None if said.get("heading") == HEADING_UNKNOWN else _optional(said, "heading", 0, 360)


def _time_ms(said: object, now_ms: int, limits: Limits) -> int:
    time_ms = _parsed_time_ms(said)
    if time_ms > now_ms + limits.future_max_s * 1_000:
        raise _Wrong("time_future", "The time lies in the future: please set the device's clock.")
    if time_ms < now_ms - limits.age_max_s * 1_000:
        raise _Wrong("time_old", f"The time lies more than {limits.age_max_s / 86_400:g} days back.")
    return time_ms


def _parsed_time_ms(said: object) -> int:
    if isinstance(said, int | float) and not isinstance(said, bool):
        return _milliseconds(said)
    if isinstance(said, str) and _TIME.fullmatch(said):
        try:
            return _milliseconds(datetime.fromisoformat(said.upper().replace(" ", "T")).timestamp())
        except (ValueError, OverflowError) as error:
            raise _Wrong("time_wrong", "There is no such time.") from error
    raise _Wrong("time_missing", "time must be RFC 3339 text with an offset, or seconds since 1970.")


def _milliseconds(time_s: float) -> int:
    if not -TIME_S_MAX <= time_s <= TIME_S_MAX:  # true for NaN too
        raise _Wrong("time_wrong", "There is no such time.")
    return round(time_s * 1_000)
