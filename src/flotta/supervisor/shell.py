"""The supervisor: carries out what the plan decides, and tells it what happens.

It owns the listening socket, the children, the signals, the timer and the screen; it decides nothing itself
(:mod:`flotta.supervisor.plan`). One thread, one event loop; children are forked from the main thread.

Order of the end: the plan has ended (no process of ours is left), the screen is closed, the warden is sent home, the
socket is closed. Embedded servers belong to the caller, who lets go of them last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO, final

from flotta.supervisor import plan as p
from flotta.supervisor.child import Child, Command
from flotta.supervisor.footer import PALETTE, Row, Service, shown_duration
from flotta.supervisor.launch import Launcher, WardenProcess, exit_text, listen, memory_of, raise_open_files
from flotta.supervisor.options import RunOptions
from flotta.supervisor.probe import answers
from flotta.supervisor.reload import changes
from flotta.supervisor.screen import Mode, Screen
from flotta.supervisor.sockets import Listener
from flotta.supervisor.states import Slot, State

__all__ = ["Supervisor"]

_TAIL_LINES = 40
_REFRESH_S = 1.0
_WARDEN_GRACE_S = 5.0
_SIGTERM_ECHO_S = 1.0


@final
@dataclass(slots=True)
class _Record:
    """What the operator may want to know of one slot, over all its processes."""

    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    last_exit: str = ""
    last_exit_at_s: float = 0.0
    requests: tuple[float, int] | None = None
    """When and how many, at the last statistics."""
    requests_per_s: float | None = None

    def count(self, now_s: float, requests: int) -> None:
        if self.requests is not None and now_s > self.requests[0] and requests >= self.requests[1]:
            self.requests_per_s = (requests - self.requests[1]) / (now_s - self.requests[0])
        self.requests = (now_s, requests)


@final
class Supervisor:
    """Runs the service that ``options`` describe until it is stopped or gives up.

    ``urls`` are handed to every process (embedded servers, by variable); ``servers`` are lines for the footer.
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        environ: Mapping[str, str] = os.environ,
        urls: Mapping[str, str] | None = None,
        servers: Sequence[tuple[str, str]] = (),
        out: TextIO | None = None,
    ) -> None:
        self._options = options
        self._environ = environ
        self._urls = urls or {}
        self._servers = servers
        self._out = out or sys.stdout

    def run(self) -> int:
        """Serve. Returns the exit code: 0 after a graceful stop, 1 when it was forced or gave up.

        Raises CannotListen before anything has been started. Call it in the main thread.
        """
        listener = listen(self._options)
        raise_open_files()
        try:
            return asyncio.run(self._serve(listener))
        finally:
            listener.close()

    async def _serve(self, listener: Listener) -> int:
        warden = WardenProcess(_WARDEN_GRACE_S)
        mode = Mode.of(self._out, self._environ, json=self._options.json)
        launcher = Launcher(self._options, listener, self._environ, self._urls, live=mode.live)
        run = _Run(launcher, warden, mode, self._servers, self._out)
        try:
            return await run.until_ended()
        finally:
            run.close()
            warden.close()


@final
class _Run:
    """One run of a service, inside the event loop."""

    def __init__(
        self,
        launcher: Launcher,
        warden: WardenProcess,
        mode: Mode,
        servers: Sequence[tuple[str, str]],
        out: TextIO,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._launcher = launcher
        self._options = options = launcher.options
        self._listener = launcher.listener
        self._url = self._listener.url(options.scheme)
        self._warden = warden
        self._servers = servers
        self._plan = p.Plan(launcher.limits(), instances=options.instances, companions=len(options.companions))
        self._names = [*options.instance_names, *(companion.name for companion in options.companions)]
        self._children: dict[int, Child] = {}
        self._records = [_Record() for _ in self._names]
        self._began_at_s = self._loop.time()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._began_on_terminal = _is_terminal()
        self._sigterm_at_s = float("-inf")
        self._gave_up: p.GiveUp | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._screen = Screen(mode, out.fileno(), self._names, self._on_full, self._service)

    async def until_ended(self) -> int:
        """The exit code, once no process is left. Raises whatever went wrong in our own code."""
        self._loop.set_exception_handler(self._on_bug)
        self._listen_to_signals()
        self._greet()
        self._own(self._refresh(), "footer")
        if self._options.reload:
            self._own(self._watch(), "watch files")
        self._feed(p.Begin())
        return await self._ended

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: what we know of our children may be wrong, so end rather than go on."""
        self._fail(context.get("exception") or RuntimeError(context["message"]))

    def _fail(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def close(self) -> None:
        """Whatever happened: no child, no task, no footer is left."""
        for child in self._children.values():
            child.kill()
        for task in self._tasks:
            task.cancel()
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            self._loop.remove_signal_handler(sig)
        for child in self._children.values():
            child.process.wait()
        self._screen.close()

    # -- events in --

    def _listen_to_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._loop.add_signal_handler(signal.SIGINT, self._on_stop, "Ctrl-C")
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_sigterm(self) -> None:
        """`make`, `timeout` and their like pass on to their child what the whole process group has had already."""
        before_s, self._sigterm_at_s = self._sigterm_at_s, self._loop.time()
        if self._sigterm_at_s - before_s >= _SIGTERM_ECHO_S:
            self._on_stop("SIGTERM")

    def _on_stop(self, what: str) -> None:
        if self._plan.phase is p.Phase.RUNNING:
            seconds = self._plan.limits.stop_s
            self._screen.say(f"{what}: stopping, at most {seconds:g} s; once more ends everything at once")
        elif self._plan.phase is p.Phase.STOPPING:
            self._screen.say(f"{what} again: ending everything now", level="warning")
        self._feed(p.Stop())

    def _on_hangup(self) -> None:
        """The terminal was closed, or somebody asks for what does not exist yet."""
        if self._began_on_terminal and not _is_terminal():
            self._on_stop("terminal closed")
            return
        self._screen.say("SIGHUP ignored: it is reserved for the rolling restart", level="warning")

    def _reap(self) -> None:
        for slot, child in list(self._children.items()):
            code = child.reap()
            if code is None:
                continue
            del self._children[slot]
            self._on_exit(child, code)

    def _on_exit(self, child: Child, code: int) -> None:
        slot, record = self._plan.slots[child.slot], self._records[child.slot]
        now_s = self._loop.time()
        record.last_exit, record.last_exit_at_s = exit_text(code), now_s
        record.requests = record.requests_per_s = None
        lived = shown_duration(now_s - slot.spawned_at_s)
        name = self._names[child.slot]
        expected = slot.state in (State.STOPPING, State.RESTARTING) or (slot.companion and code == 0)
        graceful = expected and code in (0, -signal.SIGTERM)
        level = "info" if graceful else "warning" if expected else "error"
        ended = "stopped" if graceful else f"ended by {exit_text(code)}"
        self._screen.say(
            f"{name} {ended} after {lived} (pid {child.pid})", level=level, instance=name, pid=child.pid, code=code
        )
        self._feed(p.Exited(child.slot, code, child.hopeless))

    def on_line(self, child: Child, stream: str, line: str) -> None:
        self._records[child.slot].tail.append(line)
        self._screen.child_line(child.slot, stream, line)

    def on_status(self, child: Child, status: dict[str, Any]) -> None:
        """A line of an instance: ``{"state": ...}`` or ``{"stats": {...}}``."""
        state, stats = status.get("state"), status.get("stats")
        if isinstance(stats, dict):
            child.status = stats
            if isinstance(requests := stats.get("requests"), int):
                self._records[child.slot].count(self._loop.time(), requests)
        if not isinstance(state, str):
            return
        child.state = state
        child.hopeless = child.hopeless or bool(status.get("hopeless"))
        slot = self._plan.slots[child.slot]
        if state == "ready" and slot.state in (State.STARTING, State.RESTARTING, State.STOPPING):
            self._tell_ready(slot, child)
            self._feed(p.Ready(child.slot))

    def _tell_ready(self, slot: Slot, child: Child) -> None:
        took_s = self._loop.time() - slot.spawned_at_s
        name = self._names[slot.number]
        self._screen.say(f"{name} ready in {took_s:.1f} s (pid {child.pid})", instance=name, pid=child.pid)

    async def _watch(self) -> None:
        async for changed in changes(self._options.reload_dirs or (self._options.app_dir,)):
            shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            self._screen.say(f"changed: {shown}; restarting")
            self._feed(p.Changed())

    # -- actions out --

    def _feed(self, event: p.Event) -> None:
        for action in self._plan.on_event(event, self._loop.time()):
            self._do(action)
        if self._timer is not None:
            self._timer.cancel()
        due_s = self._plan.due_at_s
        self._timer = None if due_s is None else self._loop.call_at(due_s, self._feed, p.Due())
        self._screen.refresh()

    def _do(self, action: p.Action) -> None:
        match action:
            case p.Spawn(number):
                self._spawn(number)
            case p.Terminate(number):
                if child := self._children.get(number):
                    child.terminate(group=self._plan.slots[number].companion)
            case p.Kill(number):
                if child := self._children.get(number):
                    self._screen.say(f"{self._names[number]} did not end in time: killed", level="warning")
                    child.kill()
            case p.Retry(number, delay_s):
                self._screen.say(f"{self._names[number]} is started again in {delay_s:.1f} s", level="warning")
            case p.Hold(number):
                self._screen.say(f"{self._names[number]} waits for a change of the files", level="warning")
            case p.Announce():
                self._own(self._announce(), "announce")
            case p.GiveUp():
                self._gave_up = action
            case p.End(code):
                self._tell_end(code)
                if not self._ended.done():
                    self._ended.set_result(code)

    def _spawn(self, number: int) -> None:
        try:
            if self._plan.slots[number].companion:
                command = self._options.companions[number - self._options.instances].command
                self._start(number, self._launcher.companion(command))
                self._loop.call_soon(self._feed, p.Ready(number))
            else:
                self._start_instance(number)
        except OSError as error:
            self._screen.say(f"{self._names[number]} cannot be started: {error}", level="error")
            self._loop.call_soon(self._feed, p.Exited(number, 127))

    def _start_instance(self, number: int) -> None:
        reader, writer = os.pipe()
        try:
            child = self._start(number, self._launcher.instance(number, writer))
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        child.hear(reader)

    def _start(self, number: int, command: Command) -> Child:
        self._records[number].tail.clear()
        child = self._children[number] = Child.start(number, command, self, self._warden)
        return child

    def _on_full(self, full: bool) -> None:  # noqa: FBT001 - a switch
        for child in self._children.values():
            child.pause(full)

    # -- what the operator sees --

    def _greet(self) -> None:
        count = self._options.instances
        noun = "instance" if count == 1 else "instances"
        with_reload = ", restarts when files change" if self._options.reload else ""
        self._screen.say(
            f"{self._options.app} on {self._url}, {count} {noun}{with_reload}",
            app=self._options.app,
            url=self._url,
            instances=count,
            pid=os.getpid(),
        )

    async def _announce(self) -> None:
        if self._options.ready_path is not None:
            await answers(self._listener, self._options.ready_path, tls=self._options.scheme == "https")
        self._screen.plain(f"ready {self._url}", url=self._url)

    async def _refresh(self) -> None:
        while True:
            self._screen.refresh()
            await asyncio.sleep(_REFRESH_S)

    def _tell_end(self, code: int) -> None:
        if self._gave_up is not None:
            self._tell_gave_up(self._gave_up)
            return
        text = "stopped" if code == 0 else "stopped, but not gracefully: something had to be cut off"
        self._screen.say(text, level="info" if code == 0 else "warning", code=code)

    def _tell_gave_up(self, gave_up: p.GiveUp) -> None:
        name, record = self._names[gave_up.slot], self._records[gave_up.slot]
        if gave_up.crashes < self._plan.limits.quick_crashes_max:
            reason = f"{name} cannot start, and trying again would not help"
        else:
            reason = f"{gave_up.crashes} quick crashes in a row, the last one of {name}. The end of its output:"
        self._screen.say(reason, level="error", instance=name)
        if gave_up.crashes >= self._plan.limits.quick_crashes_max:
            for line in record.tail:
                self._screen.say(f"    {line}", level="error")

    def _service(self) -> Service:
        plan, now_s = self._plan, self._loop.time()
        remaining_s = None if plan.stop_at_s is None else max(0.0, plan.stop_at_s - now_s)
        return Service(
            url=self._url,
            rows=[self._row(slot, now_s) for slot in plan.slots],
            uptime_s=now_s - self._began_at_s,
            ready=sum(slot.state is State.READY for slot in plan.instances),
            instances=len(plan.instances),
            servers=self._servers,
            remaining_s=remaining_s,
            hint="Ctrl-C stops" if remaining_s is None else "Ctrl-C ends everything at once",
        )

    def _row(self, slot: Slot, now_s: float) -> Row:
        child, record = self._children.get(slot.number), self._records[slot.number]
        ago = f"{record.last_exit}, {shown_duration(now_s - record.last_exit_at_s)} ago" if record.last_exit else ""
        return Row(
            name=self._names[slot.number],
            pid=child.pid if child else None,
            state=_shown_state(slot, child, now_s),
            colour=PALETTE[slot.number % len(PALETTE)],
            uptime_s=now_s - slot.spawned_at_s if child else None,
            requests_per_s=record.requests_per_s,
            sockets=_most(_number(child, "connections"), _number(child, "websocket_connections")),
            memory_bytes=memory_of(child.pid) if child else None,
            restarts=slot.restarts,
            last_exit=ago,
        )


def _is_terminal() -> bool:
    """Whether standard input is a terminal that has not hung up."""
    try:
        return os.isatty(0)
    except OSError:
        return False


def _number(child: Child | None, key: str) -> int | None:
    value = child.status.get(key) if child else None
    return value if isinstance(value, int) else None


def _most(*counts: int | None) -> int | None:
    return max((count for count in counts if count is not None), default=None)


def _shown_state(slot: Slot, child: Child | None, now_s: float) -> str:
    match slot.state:
        case State.STOPPING:
            return "draining" if child and child.state == "draining" else "stopping"
        case State.BACKOFF if slot.due_at_s is not None:
            return f"again in {max(0.0, slot.due_at_s - now_s):.0f}s"
        case State.READY if slot.companion:
            return "running"
        case State.GONE:
            return "stopped"
        case _:
            return str(slot.state.value)
