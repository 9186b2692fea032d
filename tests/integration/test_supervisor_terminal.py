"""What a person at a terminal sees: the footer, the countdown, Ctrl-C. A real pseudo-terminal, a small screen model."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from supervisor_service import APP, alive, flotta, wait_until

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Terminal:
    """A process on a pseudo-terminal. ``screen()`` is what is to be seen: the sequences that we write are obeyed, any
    other one fails the test."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None, columns: int = 120) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLOTTA_", "REDIS_", "DATABASE_"))}
        environ.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            flotta(*arguments),
            cwd=folder,
            env={**environ, "TERM": "xterm-256color", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=_own_terminal,  # noqa: PLW1509 - nothing else can give it a controlling terminal
        )
        os.close(slave)
        self.raw = ""
        self._hung_up = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def _read(self) -> None:
        data = b""
        while not self._hung_up:
            if not select.select([self._master], [], [], 0.05)[0]:
                continue
            try:
                data += os.read(self._master, 65536)
            except OSError:  # Linux: EIO when the last process has closed it
                return
            self.raw = data.decode(errors="ignore")

    def hang_up(self) -> None:
        """Close the terminal, as closing its window does."""
        self._hung_up = True
        self._reader.join(5)
        os.close(self._master)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def screen(self) -> list[str]:
        lines, row = [""], 0
        text = re.sub(r"\x1b(\[[0-9;?]*)?$", "", self.raw)  # a sequence that has not come whole
        fresh = True  # at the beginning of a line: what comes replaces it
        for token in _TOKEN.finditer(text):
            codes, letter = token[1], token[2]
            if token[0] == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token[0] == "\r":
                fresh = True
            elif letter is None:
                lines[row] = token[0] if fresh else lines[row] + token[0]
                fresh = False
            elif letter == "A":
                row -= int(codes)
                assert row >= 0
            elif letter == "J":
                del lines[row:]
                lines.append("")
            else:
                assert letter in "mhl", f"unexpected sequence {token[0]!r}"
        return lines

    def wait_screen(self, pattern: str, timeout_s: float = 20.0) -> str:
        return wait_until(
            lambda: next((line for line in self.screen() if re.search(pattern, line)), ""),
            f"{pattern!r} on the screen:\n" + "\n".join(self.screen()),
            timeout_s,
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(40)
        if not self._hung_up:
            self._reader.join(5)
            os.close(self._master)


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(
    folder: Path, *arguments: str, env: dict[str, str] | None = None, columns: int = 120, app: str = APP
) -> Iterator[Terminal]:
    (folder / "app.py").write_text(app)
    running = Terminal(folder, "run", "app:app", "--port", "0", "--name", "api", *arguments, env=env, columns=columns)
    try:
        yield running
    finally:
        running.close()


def test_the_footer_shows_each_instance_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "2") as seen:
        seen.wait_screen(r"flotta  http://\S+ ─+ 2/2 ready")
        for name in ("api.1", "api.2"):
            row = seen.wait_screen(rf"^ {name} +\d+ +ready +\d+s .*MiB")
            assert alive(int(row.split()[1]))
        assert seen.screen()[-2].strip() == "Ctrl-C stops"
        pid = int(seen.wait_screen(r"^ api\.2 +\d+ +ready").split()[1])
        os.kill(pid, signal.SIGKILL)
        seen.wait_screen(r"^ api\.2 +\d+ +ready .* 1  SIGKILL, \ds ago")
        seen.type(b"\x03")
        assert seen.process.wait(30) == 0
        seen._reader.join(5)
        last = [line for line in seen.screen() if line]
        assert last[-1] == "flotta | stopped"
        # The footer has taken nothing with it: every line that it was drawn below is still there.
        assert [line for line in last if line.startswith("flotta | app:app on ")]
        assert len([line for line in last if re.search(r"^flotta \| api\.\d ready in", line)]) == 3
        assert len([line for line in last if line.startswith("ready http")]) == 1
        assert not any("req/s" in line or "Ctrl-C stops" in line for line in last)
        assert seen.raw.rstrip().endswith("\x1b[?25h")
        assert seen.raw.count("\x1b[?25l") == 1


def test_requests_are_counted(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "1") as seen:
        url = seen.wait_screen("^ready http").split()[1]
        done = threading.Event()

        def ask() -> None:
            with httpx.Client() as client:
                while not done.is_set():
                    client.get(url)

        asking = threading.Thread(target=ask)
        asking.start()
        seen.wait_screen(r"^ api\.1 +\d+ +ready +\d+s +[1-9]\d+ +1 ")
        done.set()
        asking.join()


def test_ctrl_c_reaches_the_supervisor_alone_counts_down_and_lets_requests_end(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "2") as seen:
        url = seen.wait_screen("^ready http").split()[1]
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{url}/slow?3", timeout=10).status_code))
        asking.start()
        seen.wait_screen("slow request began")
        seen.type(b"\x03")
        counted: set[str] = set()
        while seen.process.poll() is None:
            counted |= set(re.findall(r"stopping: (\d+) s left", seen.raw))
            time.sleep(0.05)
        assert seen.process.wait() == 0
        asking.join()
        assert answers == [200]
        assert len(counted & {"30", "29", "28", "27", "26"}) >= 2  # a busy screen may skip one
        assert "draining" in seen.raw


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "2") as seen:
        url = seen.wait_screen("^ready http").split()[1]
        family = [child.pid for child in psutil.Process(seen.process.pid).children(recursive=True)]
        asking = threading.Thread(target=lambda: _swallow(f"{url}/stuck"))
        asking.start()
        seen.wait_screen("stuck request began")
        seen.type(b"\x03")
        seen.wait_screen("Ctrl-C ends everything at once")
        seen.type(b"\x03")
        assert seen.process.wait(10) == 1
        asking.join()
        assert not [pid for pid in family if alive(pid)]


def _swallow(url: str) -> None:
    try:
        httpx.get(url, timeout=30)
    except httpx.HTTPError:
        return


def test_a_terminal_that_is_closed_stops_the_service(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "1") as seen:
        seen.wait_screen("^ready http")
        family = [child.pid for child in psutil.Process(seen.process.pid).children(recursive=True)]
        seen.hang_up()
        assert seen.process.wait(15) == 0
        assert not [pid for pid in family if alive(pid)]


def test_no_line_of_the_footer_is_wider_than_a_narrow_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "2", columns=40) as seen:
        seen.wait_screen(r"^ api\.2 +\d+ +ready")
        at = next(n for n, line in enumerate(seen.screen()) if "flotta  http" in line)
        assert [line for line in seen.screen()[at:] if len(line) >= 40] == []
        seen.resize(100)
        os.kill(seen.process.pid, signal.SIGWINCH)
        seen.wait_screen(r"flotta  http.{40,}2/2 ready")


def test_each_instance_has_a_prefix_in_a_colour_of_its_own(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "2", app=f'print("imported", flush=True)\n{APP}') as seen:
        for name in ("api.1", "api.2"):
            seen.wait_screen(rf"^{name} +\| imported$")
        painted = re.findall(r"\x1b\[([0-9;]+)m(api\.\d) +\|\x1b\[0m imported\r", seen.raw)
        assert sorted(name for _, name in painted) == ["api.1", "api.2"]
        colours = {code for code, _ in painted}
        assert len(colours) == 2
        # Colours of the foreground, and not red: that one says "error".
        assert all(re.fullmatch(r"(3|9)[02-6]", code) for code in colours)
        assert re.search(r"\x1b\[2mflotta \|\x1b\[0m app:app on ", seen.raw)


def test_no_color_and_json_are_honoured_on_a_terminal(tmp_path: Path) -> None:
    with terminal(tmp_path, "-n", "1", env={"NO_COLOR": "1"}) as seen:
        seen.wait_screen("1/1 ready")
        assert not re.search(r"\x1b\[[0-9;]*m", seen.raw)
    with terminal(tmp_path, "-n", "1", "--json") as seen:
        wait_until(lambda: '"event": "ready http' in seen.raw, "ready")
        assert "\x1b" not in seen.raw
