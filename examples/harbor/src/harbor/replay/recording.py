"""The recorded hour: AIS reports of New York harbor, read from the data folder. Pure but for reading the file.

The published file has two quirks, undone here: course over ground was stored in a signed field of tenths, so courses
above 204.7 appear as their value less 409.6 (and 360, "not available", as -49.6); a heading of 511 means none.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["DATA", "Recording", "Report", "read_recording"]

DATA = Path(__file__).parents[3] / "data" / "nyharbor_2020-06-30_first_hour.csv.gz"
COURSE_STEP = 409.6
COURSE_UNKNOWN = 360.0
# ITU-R M.1371, table 53, by the first digit or the number of the type of ship.
_KINDS_BY_NUMBER = {30: "fishing", 31: "tug", 32: "tug", 52: "tug", 36: "pleasure", 37: "pleasure"}
_KINDS_BY_TEN = {6: "passenger", 7: "cargo", 8: "tanker"}


@dataclass(frozen=True, slots=True)
class Report:
    """One report: ``at_s`` after the start of the recording."""

    at_s: float
    device: str
    lat: float
    lon: float
    speed_kn: float | None
    course_deg: float | None
    heading_deg: float | None


@dataclass(frozen=True, slots=True)
class Recording:
    """All reports in the order of their times, and what is known of the devices."""

    length_s: float
    reports: tuple[Report, ...]
    devices: tuple[dict[str, Any], ...]


def read_recording(path: Path = DATA) -> Recording:
    """Reads the file. Raises OSError, or ValueError for a line that cannot be read."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    start = min(_time_s(row) for row in rows)
    reports = sorted((_report(row, start) for row in rows), key=lambda report: (report.at_s, report.device))
    return Recording(length_s=3_600.0, reports=tuple(reports), devices=tuple(_devices(rows)))


def _report(row: Mapping[str, str], start_s: float) -> Report:
    return Report(
        at_s=_time_s(row) - start_s,
        device=_device_id(row),
        lat=float(row["LAT"]),
        lon=float(row["LON"]),
        speed_kn=_number(row["SOG"]),
        course_deg=_course(row["COG"]),
        heading_deg=None if row["Heading"] in {"", "511.0"} else float(row["Heading"]),
    )


def _devices(rows: Iterable[Mapping[str, str]]) -> Iterable[dict[str, Any]]:
    """Each vessel once, with the last thing it said of itself (the first reports lack the static data)."""
    devices: dict[str, dict[str, Any]] = {}
    for row in rows:
        device = devices.setdefault(
            _device_id(row), {"id": _device_id(row), "name": "", "kind": "other", "callsign": ""}
        )
        said = {
            "name": row["VesselName"].strip(),
            "kind": _kind(row["VesselType"]),
            "callsign": row["CallSign"].strip(),
            "length_m": _number(row["Length"]),
            "width_m": _number(row["Width"]),
        }
        device.update({key: value for key, value in said.items() if value})
    return [devices[name] for name in sorted(devices)]


def _device_id(row: Mapping[str, str]) -> str:
    return f"mmsi:{row['MMSI']}"


def _time_s(row: Mapping[str, str]) -> float:
    return datetime.fromisoformat(row["BaseDateTime"]).replace(tzinfo=UTC).timestamp()


def _number(text: str) -> float | None:
    return float(text) if text else None


def _course(text: str) -> float | None:
    if not text:
        return None
    course = float(text)
    course = round(course + COURSE_STEP if course < 0 else course, 1)
    return None if course >= COURSE_UNKNOWN else course


def _kind(text: str) -> str | None:
    if not text:
        return None
    number = int(float(text))
    return _KINDS_BY_NUMBER.get(number) or _KINDS_BY_TEN.get(number // 10) or "other"
