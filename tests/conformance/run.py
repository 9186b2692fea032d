"""Runs the official Engine.IO and Socket.IO protocol test suites against Flotta, on every way of serving it.

    python tests/conformance/run.py [--repeat N] [--way NAME]... FOLDER

FOLDER is a checkout of the socket.io repository, its ``docs`` folder, or any folder with the suites in it. They are
copied to a temporary folder, installed there with npm, and run as they are; each suite wants its server at port 3000.
Exit code 0: everything passed; 1: something failed; 2: nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ways import HOST, WAYS, command

HERE = Path(__file__).parent
PORT = 3000  # the suites name it
START_S = 30.0
SUITE_S = 120.0
NPM_S = 300.0
# Name, the suite's own name in its package.json.
SUITES = {"engine.io 4": "engine.io-protocol-test-suite", "socket.io 5": "socket.io-protocol-test-suite"}
VERSIONS = {"engine.io 4": "v4", "socket.io 5": "v5"}


class Problem(Exception):
    """Why nothing can be run."""


class Result(NamedTuple):
    """One suite on one way of serving, once."""

    way: str
    suite: str
    passed: int
    failures: list[tuple[str, str]]
    """The test's title, and what it said."""
    duration_s: float

    @property
    def good(self) -> bool:
        """It ran, and nothing failed."""
        return self.passed > 0 and not self.failures


def find_suites(folder: Path) -> dict[str, Path]:
    """The folder of each suite in or under ``folder``. Raises Problem."""
    if not folder.is_dir():
        raise Problem(f"there is no folder {folder}")
    kinds = [Path("engine.io-protocol"), Path("socket.io-protocol"), Path()]
    found: dict[str, Path] = {}
    for place in (folder / base / kind for base in ("docs", ".") for kind in kinds):
        for manifest in [place / "package.json", *sorted(place.glob("*/package.json"))]:
            name = _suite_in(manifest)
            if name is not None:
                found.setdefault(name, manifest.parent)
    lacking = ", ".join(sorted(set(SUITES) - set(found)))
    if not found:
        raise Problem(
            f"{folder} does not hold the protocol test suites ({lacking}). SUITES is a checkout of the socket.io "
            "repository, its docs folder, or a folder with docs/engine.io-protocol/v4-test-suite and "
            "docs/socket.io-protocol/v5-test-suite in it."
        )
    if lacking:
        print(f"conformance: {folder} does not hold the suite of {lacking}: it is not run", file=sys.stderr)
    return {name: found[name] for name in SUITES if name in found}


def _suite_in(manifest: Path) -> str | None:
    """Which suite this folder is. Older protocols' suites have the same package name: the folder tells them apart."""
    try:
        package = json.loads(manifest.read_text()).get("name")
    except (OSError, ValueError):
        return None
    for name, wanted in SUITES.items():
        other_version = manifest.parent.name.startswith("v") and not manifest.parent.name.startswith(VERSIONS[name])
        if package == wanted and not other_version:
            return name
    return None


def install(suites: dict[str, Path], into: Path) -> dict[str, Path]:
    """Copy each suite and let npm install what it needs. Raises Problem."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Problem("the suites need node and npm")
    copies: dict[str, Path] = {}
    for name, source in suites.items():
        copies[name] = into / name.replace(" ", "-")
        shutil.copytree(source, copies[name], ignore=shutil.ignore_patterns("node_modules"))
        locked = (copies[name] / "package-lock.json").exists()
        done = subprocess.run(
            ["npm", "ci" if locked else "install", "--include=dev", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=copies[name],
            capture_output=True,
            text=True,
            timeout=NPM_S,
            check=False,
        )
        if done.returncode:
            raise Problem(f"npm could not install the {name} suite: {(done.stderr or done.stdout).strip()[-500:]}")
    return copies


@contextmanager
def served(way: str) -> Iterator[None]:
    """A server of our own at the port. Raises Problem."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, PORT)) == 0:
            raise Problem(f"something else serves at port {PORT}, which the suites need")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command(way, PORT), cwd=HERE, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(process):
                log.seek(0)
                raise Problem(f"the server ({way}) does not start:\n{log.read()[-2000:]}")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(process: subprocess.Popen[bytes]) -> bool:
    """Wait until both servers open sessions."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            for path in ("engine.io", "socket.io"):
                urllib.request.urlopen(f"http://{HOST}:{PORT}/{path}/?EIO=4&transport=polling", timeout=2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def run_suite(way: str, suite: str, folder: Path) -> Result:
    """Run one suite once."""
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    began_s = time.monotonic()
    mocha = [str(folder / "node_modules" / ".bin" / "mocha"), "test-suite.js", "--exit"]
    # Their servers listen on every address of "localhost"; ours on IPv4's.
    environ = {**os.environ, "NODE_OPTIONS": "--dns-result-order=ipv4first"}
    try:
        done = subprocess.run(
            [*mocha, "--reporter", "json", "--reporter-option", f"output={report}"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SUITE_S,
            check=False,
        )
        told = json.loads(report.read_text())
    except subprocess.TimeoutExpired:
        return Result(way, suite, 0, [("the suite", f"did not end within {SUITE_S:.0f} s")], SUITE_S)
    except (OSError, ValueError):
        return Result(way, suite, 0, [("the suite", (done.stderr or done.stdout)[-1000:])], time.monotonic() - began_s)
    failures = [(test["fullTitle"], test["err"].get("message", "failed")) for test in told["failures"]]
    return Result(way, suite, told["stats"]["passes"], failures, time.monotonic() - began_s)


def show(results: list[Result]) -> None:
    """The table: a line for each way, a column for each suite; then what failed."""
    ways = list(dict.fromkeys(result.way for result in results))
    width = max(len(way) for way in ways)
    suites = list(dict.fromkeys(result.suite for result in results))
    print(f"\n{'':{width}}  " + "".join(f"{suite:>24}" for suite in suites))
    for way in ways:
        print(f"{way:{width}}  " + "".join(f"{_cell(results, way, suite):>24}" for suite in suites))
    for result in results:
        for title, message in result.failures:
            print(f"\nFAILED  {result.way}, {result.suite}: {title}\n        {message}")


def _cell(results: list[Result], way: str, suite: str) -> str:
    mine = [result for result in results if (result.way, result.suite) == (way, suite)]
    passed, failed = sum(result.passed for result in mine), sum(len(result.failures) for result in mine)
    mark = "ok" if mine and all(result.good for result in mine) else "FAILED"
    return f"{passed}/{passed + failed} {mark} {sum(result.duration_s for result in mine):.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", help="a checkout of the socket.io repository, its docs folder, or the suites' folder")
    parser.add_argument("--repeat", type=int, default=1, help="how often each suite runs on each way [1]")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="only this way of serving; may be repeated")
    given = parser.parse_args()
    results: list[Result] = []
    try:
        if not given.folder:
            raise Problem("SUITES is not set: make conformance SUITES=<checkout of the socket.io repository>")
        suites = find_suites(Path(given.folder))
        with tempfile.TemporaryDirectory(prefix="flotta-conformance-") as scratch:
            copies = install(suites, Path(scratch))
            for way in given.way or WAYS:
                with served(way):
                    for _ in range(given.repeat):
                        results.extend(run_suite(way, suite, folder) for suite, folder in copies.items())
    except Problem as problem:
        print(f"conformance: {problem}", file=sys.stderr)
        return 2
    show(results)
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
