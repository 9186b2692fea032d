"""Which namespaces there are: those that were named, and those that patterns make when a client asks for them.

``namespace=`` of everything that registers takes a name, a compiled regular expression (of the whole name), a
predicate ``f(name, auth, environ) -> bool`` (sync or async), or ``"*"`` for any namespace. A namespace that has no name
of its own here is *dynamic*: its `Space` is made when the first client asks, belongs to the first pattern, in the order
of their registration, that lets a client in, and is removed when nobody has been in it for a while. ``"*"`` comes last.

Nothing lasting comes from clients that are turned away: a space that never let anybody in goes with its last client,
and the adapter hears of a namespace only when a client is about to be accepted. Spaces that did are bounded in number.
A predicate decides on every client, not only on the one whose coming makes the namespace.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, final

from flotta.errors import ConnectRefused, RealtimeError, StateError
from flotta.realtime.adapters import Adapter
from flotta.realtime.delivery import Delivery, Space
from flotta.realtime.engineio.wheel import Wheel
from flotta.realtime.handlers import Handlers, Table
from flotta.realtime.middleware import finish

__all__ = ["ANY_NAMESPACE", "Gate", "NamespaceSpec", "Namespaces", "Predicate"]

ANY_NAMESPACE: Final = "*"
EMPTY_S = 30.0
"""How long a dynamic namespace without clients is kept."""
# A client chooses the name, and adapters make channels and patterns of it: nothing that has a meaning there, no spaces
# or control characters, and short.
_DYNAMIC_NAME = re.compile(r"/[^\s#*?\[\]\\,\x00-\x1f\x7f]{1,255}")

Predicate: TypeAlias = Callable[[str, Any, dict[str, Any]], bool | Awaitable[bool]]
"""``predicate(name, auth, environ)``: whether this client may come into the namespace of this name."""
NamespaceSpec: TypeAlias = str | re.Pattern[str] | Predicate


@final
class Pattern:
    """One pattern or predicate, and what was registered for it."""

    __slots__ = ("_spec", "table")

    def __init__(self, spec: re.Pattern[str] | Predicate | None, table: Table) -> None:
        self._spec = spec
        self.table = table

    def may_match(self, name: str) -> bool:
        """Whether a namespace of this name may be made by it."""
        if self._spec is None:  # any namespace: if somebody takes its events, not if there is only middleware
            return self.table.takes_events
        return not isinstance(self._spec, re.Pattern) or self._spec.fullmatch(name) is not None

    @property
    def asks(self) -> bool:
        """A predicate decides on every client."""
        return self._spec is not None and not isinstance(self._spec, re.Pattern)

    async def lets_in(self, name: str, auth: Any, environ: dict[str, Any]) -> bool:
        """Whether this client may come into this namespace."""
        if self._spec is None or isinstance(self._spec, re.Pattern):
            return self.may_match(name)
        return await finish(self._spec(name, auth, environ)) is True


@final
class Gate:
    """Who comes into one dynamic namespace."""

    __slots__ = ("_namespaces", "opening", "pattern", "space", "visitors")

    def __init__(self, namespaces: Namespaces, space: Space) -> None:
        self._namespaces = namespaces
        self.space = space
        self.pattern: Pattern | None = None
        """What the namespace belongs to, once somebody was let in."""
        self.opening: asyncio.Task[None] | None = None
        """Tells the adapter of the namespace; done: it knows."""
        self.visitors = 0
        """Who needs the namespace without being in its rooms: clients that are asked about, for one."""

    @property
    def is_vacant(self) -> bool:
        """Nobody is in the namespace or needs it."""
        return not self.visitors and not len(self.space.rooms)

    def come(self) -> None:
        """The namespace is needed; ends with `go`."""
        self.visitors += 1

    def go(self) -> None:
        """Ends one `come`."""
        self.visitors -= 1
        self._namespaces.check_empty(self.space)

    async def admit(self, auth: Any, environ: dict[str, Any]) -> bool:
        """Whether a client may come in. Raises `ConnectRefused` if there are too many namespaces."""
        name = self.space.name
        for pattern in self._namespaces.patterns_for(name) if self.pattern is None else ():
            if await pattern.lets_in(name, auth, environ):
                if self.pattern is None:
                    self._namespaces.settle(self, pattern)
                if self.pattern is pattern:
                    return True
                break
        return self.pattern is not None and await self.pattern.lets_in(name, auth, environ)

    async def open(self) -> None:
        """Return when what others send to the namespace arrives. Raises what the adapter does."""
        if self._namespaces.is_current(self):
            if self.opening is None or (self.opening.done() and (self.opening.cancelled() or self.opening.exception())):
                self.opening = self._namespaces.begin_open(self.space.name)
            await asyncio.shield(self.opening)


@final
class Namespaces:
    """See the module. ``dynamic_max`` bounds the dynamic namespaces that exist at once."""

    def __init__(self, delivery: Delivery, *, accepted: tuple[str, ...] | str, dynamic_max: int, logger: Any) -> None:
        self.everywhere = Table()
        self._delivery = delivery
        self._spaces = delivery.spaces
        self._any = Pattern(None if accepted != ANY_NAMESPACE else _yes, self.everywhere)
        self._patterns: dict[re.Pattern[str] | Predicate, Pattern] = {}
        self._dynamic_max = dynamic_max
        self._settled = 0
        self._empty: Wheel[str] = Wheel(EMPTY_S)
        self._sweeper: asyncio.Task[None] | None = None
        self._changing: dict[str, asyncio.Task[None]] = {}
        """The last opening or closing of each name: the next one waits for it."""
        self._adapter: Adapter | None = None
        self._log = logger
        self._full_told = False
        self._spaces["/"].handlers = Handlers("/", Table(), self.everywhere)
        for name in () if isinstance(accepted, str) else accepted:
            self.named(name)

    def start(self, adapter: Adapter) -> None:
        """From now on names are fixed and the adapter is told of dynamic namespaces."""
        self._adapter = adapter

    async def aclose(self) -> None:
        """Stop removing. Idempotent."""
        tasks = [task for task in (self._sweeper, *self._changing.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- registering ---

    def table(self, spec: NamespaceSpec) -> Table:
        """Where to register for ``spec``. Raises RealtimeError for no namespace's name, StateError for a new name
        after the start."""
        if spec == ANY_NAMESPACE:
            return self.everywhere
        if isinstance(spec, str):
            return self.named(spec).handlers.own
        if not isinstance(spec, re.Pattern) and not _is_function(spec):
            raise RealtimeError(f"{spec!r} is no namespace: give a name, a compiled pattern, a predicate or '*'")
        pattern = self._patterns.get(spec)
        if pattern is None:
            pattern = self._patterns[spec] = Pattern(spec, Table())
        return pattern.table

    def named(self, name: str) -> Space:
        """The space of a namespace that has a name of its own, made if there is none. Raises as `table`."""
        space = self._spaces.get(name)
        if space is None:
            if not name.startswith("/") or "," in name or "?" in name:
                raise RealtimeError(f"{name!r} is no namespace: it begins with / and holds neither , nor ?")
            if self._adapter is not None:
                raise StateError("the realtime server", f"register namespace {name} before the server starts")
            space = self._delivery.add_space(name)
            space.handlers = Handlers(name, Table(), self.everywhere)
        return space

    # --- finding ---

    def known(self, name: str) -> bool:
        """Whether a namespace of this name exists, or could."""
        return name in self._spaces or bool(_DYNAMIC_NAME.fullmatch(name) and self.patterns_for(name))

    def patterns_for(self, name: str) -> list[Pattern]:
        """The patterns that may make a namespace of this name, the first one first."""
        return [pattern for pattern in (*self._patterns.values(), self._any) if pattern.may_match(name)]

    def asked_for(self, name: str) -> Space | None:
        """The space that a client wants to come into, made if some pattern may match; None: there is no such
        namespace. The caller puts somebody into it at once, or lets it `come`."""
        space = self._spaces.get(name)
        if space is None and self.known(name):
            space = self._delivery.add_space(name)
            space.gate = Gate(self, space)
        if space is not None and space.gate is not None:
            self._empty.drop(name)
        return space

    @asynccontextmanager
    async def visited(self, name: str) -> AsyncIterator[None]:
        """Inside, the adapter listens for a dynamic namespace whether somebody here is in it or not. Raises what the
        adapter does."""
        space = self.asked_for(name)
        gate = None if space is None else space.gate
        if gate is None:
            yield
            return
        gate.come()
        try:
            await gate.open()
            yield
        finally:
            gate.go()

    async def make_ready(self, name: str) -> bool:
        """Make the namespace for a client that another instance has let into it, and listen for it; it waits a while
        for the client. False: this server has no such namespace, only a predicate knows, or there are too many. Raises
        what the adapter does."""
        space = self.asked_for(name)
        gate = None if space is None else space.gate
        if gate is None:
            return space is not None
        gate.come()
        try:
            if gate.pattern is None:
                first = self.patterns_for(name)[0]
                if first.asks:
                    return False
                self.settle(gate, first)
            await gate.open()
        except ConnectRefused:
            return False
        finally:
            gate.go()
        return True

    # --- coming and going of dynamic namespaces ---

    def settle(self, gate: Gate, pattern: Pattern) -> None:
        """A dynamic namespace gets its first client. Raises `ConnectRefused` if there are too many."""
        while self._settled >= self._dynamic_max:
            if not self._remove_oldest():
                self._tell_full()
                raise ConnectRefused("Too many namespaces")
        self._settled += 1
        name = gate.space.name
        gate.pattern = pattern
        gate.space.handlers = Handlers(name, pattern.table, self.everywhere, lead=(name,))

    def _tell_full(self) -> None:
        if not self._full_told:  # once: clients may ask as often as they like
            self._full_told = True
            self._log.warning("no more dynamic namespaces", namespaces_max=self._dynamic_max)

    def is_current(self, gate: Gate) -> bool:
        """Its space is the one of this name."""
        return self._spaces.get(gate.space.name) is gate.space

    def check_empty(self, space: Space) -> None:
        """Somebody has left a dynamic namespace: remove it, now or in a while, if that was the last."""
        gate = space.gate
        assert gate is not None
        if not gate.is_vacant or not self.is_current(gate):
            return
        if gate.opening is None:
            self._remove(space)
            return
        loop = asyncio.get_running_loop()
        self._empty.put(space.name, loop.time())
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep(), name="realtime namespaces")

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time
        while len(self._empty):
            await asyncio.sleep(max(0.0, self._empty.next_due_s() - now()))
            for name in self._empty.take_due(now()):
                self._remove_if_vacant(name)
        self._sweeper = None

    def _remove_if_vacant(self, name: str) -> None:
        """A client that another instance has let in has not asked for it here."""
        space = self._spaces[name]
        if space.gate is not None and space.gate.is_vacant:
            self._remove(space)

    def _remove_oldest(self) -> bool:
        name = self._empty.first()
        if name is None:
            return False
        self._empty.drop(name)
        self._remove_if_vacant(name)
        return True

    def _remove(self, space: Space) -> None:
        del self._spaces[space.name]
        gate = space.gate
        assert gate is not None
        self._settled -= gate.pattern is not None
        if gate.opening is not None and self._adapter is not None:
            self._change(space.name, self._adapter.close_namespace, "close")

    def begin_open(self, name: str) -> asyncio.Task[None]:
        """Tell the adapter of a namespace."""
        assert self._adapter is not None, "used before start"
        return self._change(name, self._adapter.open_namespace, "open")

    def _change(self, name: str, change: Callable[[str], Awaitable[None]], what: str) -> asyncio.Task[None]:
        before = self._changing.get(name)

        async def after() -> None:
            if before is not None:
                await asyncio.wait({before})
            await change(name)

        task = asyncio.get_running_loop().create_task(after(), name=f"{what} namespace {name}")
        self._changing[name] = task
        task.add_done_callback(lambda done: self._changed(name, done, what))
        return task

    def _changed(self, name: str, task: asyncio.Task[None], what: str) -> None:
        if self._changing.get(name) is task:
            del self._changing[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning(
                "the adapter could not change a namespace", namespace=name, change=what, reason=str(error)
            )


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _yes(_name: str, _auth: Any, _environ: dict[str, Any]) -> bool:
    return True
