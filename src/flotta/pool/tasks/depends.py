"""Parameters that the worker provides: ``Annotated[T, Depends(make)]``.

Owns how they are made and cleaned up. Invariants: within one run each maker is called once, whoever needs it; what was
made last is cleaned up first; a generator learns of the task's exception where it yielded, but cannot swallow it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any, Final, final

from flotta.errors import ConfigError
from flotta.pool.tasks.context import TaskContext

__all__ = ["INJECTED", "Depends", "Needs"]

INJECTED: Final[Any] = None
"""The default of a parameter that the worker provides, so that type checkers let callers leave it out:
``db: Annotated[Db, Depends(open_db)] = INJECTED``."""


@final
class Depends:
    """The value that ``make`` gives: a function, an ``async`` function, or a generator of either kind that yields once
    (what follows the yield is the clean-up). Its own parameters may be ``Depends`` and ``TaskContext``."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


@final
class Needs:
    """What a function needs from its worker, worked out when it is declared.

    Raises ``ConfigError`` for a parameter that nobody could provide and for a circle.
    """

    __slots__ = ("_localns", "_makers", "_wanted")

    def __init__(self, name: str, injected: Mapping[str, Any], localns: Mapping[str, Any] | None = None) -> None:
        self._localns = None if localns is None else dict(localns)
        self._makers: dict[Callable[..., Any], _Maker] = {}  # in the order in which they are made
        self._wanted: dict[str, Callable[..., Any] | None] = {}
        for parameter, annotation in injected.items():
            self._wanted[parameter] = self._resolve(name, parameter, annotation, ())

    def __bool__(self) -> bool:
        return bool(self._wanted)

    async def provide(self, stack: AsyncExitStack, context: TaskContext) -> dict[str, Any]:
        """The arguments by name; ``stack`` cleans up. Raises what a maker raises."""
        made: dict[Callable[..., Any] | None, Any] = {None: context}
        for make, maker in self._makers.items():
            made[make] = await maker.enter(stack, {name: made[needed] for name, needed in maker.wanted.items()})
        return {name: made[needed] for name, needed in self._wanted.items()}

    def _resolve(
        self, owner: str, parameter: str, annotation: Any, path: tuple[Callable[..., Any], ...]
    ) -> Callable[..., Any] | None:
        """The maker of a parameter (None: the context), known with all that it needs itself."""
        if annotation is TaskContext:
            return None
        marks = annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()
        mark = next((mark for mark in marks if isinstance(mark, Depends)), None)
        if mark is None:
            raise ConfigError(
                f"{owner}(): {parameter}", annotation, "TaskContext or Annotated[T, Depends(make)]", source="task"
            )
        if mark.make in path:
            raise ConfigError(
                f"{owner}(): {parameter}", mark.make, "a Depends that does not need itself", source="task"
            )
        if mark.make not in self._makers:
            self._makers[mark.make] = _Maker(mark.make, self._needs_of(mark.make, path))
        return mark.make

    def _needs_of(
        self, make: Callable[..., Any], path: tuple[Callable[..., Any], ...]
    ) -> dict[str, Callable[..., Any] | None]:
        """What a maker needs itself; parameters with a default of their own keep it."""
        name = getattr(make, "__qualname__", repr(make))
        try:
            hints = typing.get_type_hints(make, localns=self._localns, include_extras=True)
        except (NameError, TypeError, AttributeError) as error:
            allowed = f"types that can be found from its module ({error})"
            raise ConfigError(f"{name}(): annotations", make, allowed, source="task") from error
        return {
            need.name: self._resolve(name, need.name, hints.get(need.name), (*path, make))
            for need in inspect.signature(make).parameters.values()
            if need.default is inspect.Parameter.empty or need.default is INJECTED
        }


@final
class _Maker:
    __slots__ = ("_make", "_open", "wanted")

    def __init__(self, make: Callable[..., Any], wanted: dict[str, Callable[..., Any] | None]) -> None:
        self.wanted = wanted
        self._make = make
        self._open: Callable[..., Any] | None = None
        if inspect.isasyncgenfunction(make):
            self._open = asynccontextmanager(make)
        elif inspect.isgeneratorfunction(make):
            self._open = contextmanager(make)

    async def enter(self, stack: AsyncExitStack, arguments: dict[str, Any]) -> Any:
        if self._open is None:
            value = self._make(**arguments)
            return await value if inspect.isawaitable(value) else value
        opened = self._open(**arguments)
        if hasattr(opened, "__aenter__"):
            return await stack.enter_async_context(opened)
        return stack.enter_context(opened)
