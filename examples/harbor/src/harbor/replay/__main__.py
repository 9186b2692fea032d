"""``python -m harbor.replay --speed 30``: the feed. Ends on SIGTERM and SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from harbor.replay.client import Gateway, Refused
from harbor.replay.recording import Recording, Report, read_recording
from harbor.replay.timeline import BREAK_S, Timeline

TICK_S = 0.25
SPEED_MIN, SPEED_MAX = 1.0, 120.0
START_AGE_S = 180 * 86_400.0
"""How far back the told times begin, unless an earlier run has told later ones: then an hour after those."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until it is told to stop; 1 if the service refuses the feed."""
    arguments = _arguments(argv)
    token = os.environ.get("HARBOR_DEMO_TOKEN", "")
    if not token:
        print("HARBOR_DEMO_TOKEN is not set: the feed needs a gateway's token", file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(arguments.url, token, arguments.speed))
    except Refused as error:
        print(f"the feed was refused: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harbor.replay", description=__doc__)
    parser.add_argument("--url", default=os.environ.get("FLOTTA_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--speed", type=float, default=float(os.environ.get("HARBOR_SPEED", "30")), help="1 to 120")
    arguments = parser.parse_args(argv)
    if not SPEED_MIN <= arguments.speed <= SPEED_MAX:
        parser.error(f"--speed: {arguments.speed:g} is not between {SPEED_MIN:g} and {SPEED_MAX:g}")
    return arguments


async def _run(url: str, token: str, speed: float) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_play(url, token, read_recording(), speed))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


async def _play(url: str, token: str, recording: Recording, speed: float) -> None:
    async with Gateway(url, token) as gateway:
        await gateway.register(recording.devices)
        start_s = start_after(await gateway.newest_s(), now_s=time.time())
        timeline = Timeline(recording, speed=speed, start_s=start_s)
        await gateway.report(_first_sight(recording, start_s))
        began_s = time.monotonic()
        while True:
            due = [_position(told_s, report) for told_s, report in timeline.due(time.monotonic() - began_s)]
            if due:
                await gateway.report(due)
            await asyncio.sleep(TICK_S)


def start_after(newest_s: float | None, *, now_s: float) -> float:
    """The time at which the told hour begins: after everything that was told before, and not older than is accepted."""
    start_s = now_s - START_AGE_S
    return start_s if newest_s is None else max(start_s, newest_s + BREAK_S)


def _first_sight(recording: Recording, start_s: float) -> list[dict[str, Any]]:
    """Every vessel's first place, told a second before the hour begins: the map is full at once. The recorded reports
    follow."""
    firsts: dict[str, Report] = {}
    for report in recording.reports:
        firsts.setdefault(report.device, report)
    return [_position(start_s - 1.0, report) for report in firsts.values()]


def _position(told_s: float, report: Report) -> dict[str, Any]:
    position = {
        "device": report.device,
        "time": told_s,
        "lat": report.lat,
        "lon": report.lon,
        "speed": report.speed_kn,
        "course": report.course_deg,
        "heading": report.heading_deg,
    }
    return {key: value for key, value in position.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
