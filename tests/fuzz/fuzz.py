"""Gives every parser of the realtime server random input, guided by what it reaches in the code (atheris).

    python tests/fuzz/fuzz.py [--seconds 60] [--corpus FOLDER] [TARGET ...]

Without targets: all of them, one after the other. An input that breaks a target is kept in ``found/`` and named; put it
into ``corpus/<target>/`` with the fix, and the tests try it for ever. Exit code 0: nothing was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE / "found"
CORPUS = HERE / "corpus"
INPUT_BYTES_MAX = 4_096
ONE_INPUT_S = 2
MEMORY_MB = 1_024
PARSERS = [
    "flotta.realtime.adapters.classic_wire",
    "flotta.realtime.adapters.cluster_wire",
    "flotta.realtime.adapters.wire",
    "flotta.realtime.engineio",
    "flotta.realtime.presence.records",
    "flotta.realtime.recovery.session",
    "flotta.realtime.relay.wire",
    "flotta.realtime.engine.request",
    "flotta.realtime.socketio",
    "flotta.realtime.transports.websocket",
    "flotta.streaming.event",
]
"""What is watched: the rest of the package would only slow the start down."""


def fuzz_here(name: str, libfuzzer: list[str]) -> None:
    """Fuzz one target in this process. Never returns."""
    import atheris

    with atheris.instrument_imports(include=PARSERS):
        from targets import TARGETS

    atheris.Setup([sys.argv[0], *libfuzzer], TARGETS[name].run)
    atheris.Fuzz()


def run(name: str, seconds: float, corpus: Path | None) -> tuple[bool, str]:
    """Fuzz one target in a process of its own: nothing was found, and what it said."""
    from targets import TARGETS

    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        seeds = Path(scratch) / "seeds"
        seeds.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds):
            (seeds / str(number)).write_bytes(seed)
        if corpus is not None:
            (corpus / name).mkdir(parents=True, exist_ok=True)
        folders = [
            str(folder) for folder in ([corpus / name] if corpus else []) + [seeds, CORPUS / name] if folder.is_dir()
        ]
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-timeout={ONE_INPUT_S}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-artifact_prefix={FOUND}/{name}-",
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            [sys.executable, __file__, "--here", name, "--", *options, *folders],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
    return done.returncode == 0, done.stdout + done.stderr


def executions(said: str) -> str:
    """How many inputs were tried."""
    return next((line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line), "?")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("targets", nargs="*", help="which [all]")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target [60]")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps interesting inputs from run to run")
    given = parser.parse_args()
    from targets import TARGETS

    wrong = sorted(set(given.targets) - set(TARGETS))
    if wrong:
        parser.error(f"no target {', '.join(wrong)}; there are {', '.join(TARGETS)}")
    failed = 0
    for name in given.targets or [name for name in TARGETS if name != "everything"]:
        began_s = time.monotonic()
        good, said = run(name, given.seconds, given.corpus)
        took_s = time.monotonic() - began_s
        print(f"{name:22} {'ok' if good else 'FOUND':6} {executions(said):>10} inputs in {took_s:.0f} s", flush=True)
        if not good:
            failed += 1
            print(said[-4000:])
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        fuzz_here(sys.argv[2], sys.argv[4:])
    sys.exit(main())
