"""Typed calls: how the arguments of a declared function travel, and how they come back typed.

A payload is a MessagePack map of parameter name -> value, so that old and new code may share a pool: fields that this
side does not know are ignored, and ones that the other side did not send take their defaults. Everything that can be
known when a function is declared is checked there: its parameters, their annotations, their defaults, its templates.

The parameters become the fields of a ``msgspec.Struct`` that is made once. Its constructor binds a call, its decoder
checks types; both are C, so a call costs no ``inspect.Signature.bind``. A pure room: no I/O, no clock.
"""

from __future__ import annotations

import inspect
import string
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Self, final

import msgspec
from msgspec import inspect as types

from flotta.errors import ConfigError, WireError

__all__ = ["Signature"]

_SOURCE: Final = "declared function"
_REFUSED: Final = {
    inspect.Parameter.VAR_POSITIONAL: "a payload has named parameters only: no *args",
    inspect.Parameter.VAR_KEYWORD: "a payload has named parameters only: no **kwargs",
    inspect.Parameter.POSITIONAL_ONLY: "a parameter that may be given by its name: no '/' after it",
}
_CANNOT_TRAVEL: Final = (TypeError, ValueError, OverflowError, RecursionError)
"""What encoding raises for a value that MessagePack cannot hold."""


@final
class Signature:
    """The payload of one function. Made by `of`; immutable, shared freely between tasks and threads."""

    def __init__(
        self, name: str, bindable: inspect.Signature, call: type[msgspec.Struct], injected: dict[str, Any], result: Any
    ) -> None:
        self.name = name
        """The function's qualified name, for messages."""
        self.parameters: tuple[str, ...] = call.__struct_fields__
        """Names of the parameters that travel: positional ones first."""
        self.injected: Mapping[str, Any] = injected
        """Parameters that were skipped -> their annotations. Whoever calls the function provides them, by name."""
        self._bindable = bindable
        self._call = call
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
        self._decoder = msgspec.msgpack.Decoder(call, dec_hook=_to_model)
        self._result = result

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        *,
        skip: Collection[type | str] = (),
        localns: Mapping[str, Any] | None = None,
    ) -> Self:
        """The signature of ``fn``.

        ``skip``: names of parameters, or types, that do not travel: a parameter annotated with such a type
        (``TaskContext``, ``Job[State]``) or with an instance of it (``Annotated[T, Depends(f)]``) is left out and
        listed in `injected`. ``localns``: names for annotations that are not known in the module of ``fn``.

        Raises ``ConfigError`` naming the parameter: ``*args``, ``**kwargs``, positional-only, an annotation that
        cannot be resolved or has no MessagePack form, a default that does not fit its annotation.
        """
        name = getattr(fn, "__qualname__", repr(fn))
        parameters = list(inspect.signature(fn).parameters.values())
        hints = _hints(fn, name, localns)
        injected: dict[str, Any] = {}
        travelling: list[inspect.Parameter] = []
        for parameter in parameters:
            if parameter.kind in _REFUSED:
                raise _wrong(name, parameter.name, str(parameter), _REFUSED[parameter.kind])
            annotation = hints.get(parameter.name, Any)
            if _skipped(parameter.name, annotation, skip):
                injected[parameter.name] = annotation
            else:
                travelling.append(parameter.replace(annotation=annotation))
        call = _struct(name, travelling)
        return cls(name, inspect.Signature(travelling), call, injected, hints.get("return", Any))

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The payload of a call with these arguments, without the injected parameters.

        Raises ``TypeError`` as Python does for a call that does not fit, and for an argument that its annotation does
        not allow or MessagePack cannot hold: better here than on the worker.
        """
        bound = self._bind(args, kwargs)
        try:
            data = self._encoder.encode(bound)
            self._decoder.decode(data)
        except _CANNOT_TRAVEL as error:
            raise TypeError(f"{self.name}(): {_reason(error)}") from error
        return data

    def decode(self, data: bytes) -> dict[str, Any]:
        """The arguments of payload ``data`` by name, typed, defaults filled in. Raises ``WireError``."""
        try:
            return msgspec.structs.asdict(self._decoder.decode(data))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise WireError(f"payload of {self.name}()", _reason(error), data) from error

    def template(self, text: str) -> Callable[[tuple[Any, ...], Mapping[str, Any]], str]:
        """A function of (args, kwargs) that fills the format string ``text``, such as ``"vessel:{mmsi}"``, with the
        arguments of a call. It raises ``TypeError`` for a call that does not fit.

        Raises ``ConfigError`` now if ``text`` is no format string or names a parameter that does not travel.
        """
        given: Any = text
        if not isinstance(given, str):
            example = f"{{{self.parameters[0]}}}" if self.parameters else "main"
            raise _wrong(self.name, "template", given, f"a format string over its parameters, such as {example!r}")
        for field in self._fields_of(text):
            if field not in self.parameters:
                known = ", ".join(f"{{{p}}}" for p in self.parameters) or "none: it has no parameters that travel"
                raise _wrong(self.name, "template", text, f"fields {known}")

        def fill(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            return text.format_map(msgspec.structs.asdict(self._bind(args, kwargs)))

        return fill

    @cached_property
    def result(self) -> ResultCodec:
        """How what the function returns travels. Raises ``ConfigError`` if its annotation has no MessagePack form."""
        _check_type(self.name, "return", self._result)
        return ResultCodec(self.name, self._result)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> msgspec.Struct:
        try:
            return self._call(*args, **kwargs)
        except TypeError:
            try:
                self._bindable.bind(*args, **kwargs)  # says it in Python's words
            except TypeError as error:
                raise TypeError(f"{self.name}() {error}") from None
            raise

    def _fields_of(self, text: str) -> Iterator[str]:
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise _wrong(self.name, "template", text, f"a format string ({error})") from error
        for _, field, spec, _ in parsed:
            if field is not None:
                yield field.partition(".")[0].partition("[")[0]
                yield from self._fields_of(spec or "")


@final
class ResultCodec:
    """The bytes of what a function returned. Made by `Signature.result`."""

    def __init__(self, name: str, annotation: Any) -> None:
        self._name = name
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(annotation, dec_hook=_to_model)

    def encode(self, value: object) -> bytes:
        """Raises ``TypeError`` if ``value`` has no MessagePack form or is not what the function says it returns."""
        try:
            data = self._encoder.encode(value)
            self._decoder.decode(data)
        except _CANNOT_TRAVEL as error:
            raise TypeError(f"result of {self._name}(): {_reason(error)}") from error
        return data

    def decode(self, data: bytes) -> Any:
        """Typed by the annotation. Raises ``WireError``."""
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise WireError(f"result of {self._name}()", _reason(error), data) from error


# --- declaring -------------------------------------------------------------------------------------------------------


def _hints(fn: Callable[..., Any], name: str, localns: Mapping[str, Any] | None) -> dict[str, Any]:
    target = fn if inspect.isroutine(fn) or isinstance(fn, type) else getattr(fn, "func", type(fn).__call__)
    try:
        return typing.get_type_hints(target, localns=None if localns is None else dict(localns), include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        allowed = f"types that can be found from the module of {name} ({error})"
        raise _wrong(name, "annotations", dict(getattr(fn, "__annotations__", {})), allowed) from error


def _skipped(name: str, annotation: Any, skip: Collection[type | str]) -> bool:
    if name in skip:
        return True
    kinds = tuple(kind for kind in skip if isinstance(kind, type))
    if typing.get_origin(annotation) is Annotated:
        if any(isinstance(mark, kinds) or mark in kinds for mark in annotation.__metadata__):
            return True
        annotation = annotation.__origin__
    plain = typing.get_origin(annotation) or annotation
    return isinstance(plain, type) and issubclass(plain, kinds)


def _struct(name: str, parameters: list[inspect.Parameter]) -> type[msgspec.Struct]:
    """Keyword-only parameters are fields of a base class, since a Struct has either kind only."""
    fields: dict[bool, list[Any]] = {True: [], False: []}
    for parameter in parameters:
        fields[parameter.kind is inspect.Parameter.KEYWORD_ONLY].append(_field(name, parameter))
    base = msgspec.defstruct("Options", fields[True], kw_only=True)
    try:
        call: type[msgspec.Struct] = msgspec.defstruct("Call", fields[False], bases=(base,))
        msgspec.msgpack.Decoder(call, dec_hook=_to_model)
    except (TypeError, ValueError) as error:
        raise _wrong(name, "parameters", [p.name for p in parameters], f"what msgspec can build: {error}") from error
    return call


def _field(name: str, parameter: inspect.Parameter) -> tuple[str, Any] | tuple[str, Any, Any]:
    annotation, default = parameter.annotation, parameter.default
    if default is None:
        annotation = typing.Optional[annotation]  # noqa: UP045 - ``x: int = None``; also Any and strings
    _check_type(name, parameter.name, annotation)
    if default is inspect.Parameter.empty:
        return parameter.name, annotation
    try:
        data = msgspec.msgpack.encode(default, enc_hook=_to_plain)
        msgspec.msgpack.decode(data, type=annotation, dec_hook=_to_model)
    except _CANNOT_TRAVEL as error:
        allowed = f"a default that fits its annotation ({_reason(error)})"
        raise _wrong(name, parameter.name, default, allowed) from error
    return parameter.name, annotation, msgspec.field(default_factory=lambda: default)


def _check_type(name: str, parameter: str, annotation: Any) -> None:
    try:
        unknown = next(_unknown_in(types.type_info(annotation), set()), None)
        msgspec.msgpack.Decoder(annotation, dec_hook=_to_model)
    except (TypeError, ValueError, NameError) as error:
        raise _wrong(name, parameter, annotation, f"a type that msgspec can decode ({error})") from error
    if unknown is not None:
        allowed = (
            "types with a MessagePack form: numbers, str, bytes, collections, dataclass, msgspec.Struct, TypedDict, "
            f"datetime, UUID, Decimal, Enum, pydantic models; not {unknown}"
        )
        raise _wrong(name, parameter, annotation, allowed)


def _unknown_in(info: Any, seen: set[int]) -> Iterator[str]:
    """Names of the types within ``info`` that msgspec does not know and `_to_model` does not make."""
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, types.CustomType) and not _is_model(info.cls):
        yield getattr(info.cls, "__qualname__", repr(info.cls))
    elif isinstance(info, (types.Type, types.Field)):
        for field in info.__struct_fields__:
            value = getattr(info, field)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, (types.Type, types.Field)):
                    yield from _unknown_in(part, seen)


# --- values ----------------------------------------------------------------------------------------------------------


def _is_model(kind: Any) -> bool:
    """Whether ``kind`` is a pydantic model: known by its methods, so that pydantic need not be installed."""
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _to_plain(value: Any) -> Any:
    if _is_model(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} has no MessagePack form")


def _to_model(kind: Any, value: Any) -> Any:
    if _is_model(kind):
        return kind.model_validate(value)
    raise TypeError(f"{kind!r} has no MessagePack form")


def _reason(error: BaseException) -> str:
    return str(error).replace("$.", "").replace(" - at ", " at ")


def _wrong(name: str, what: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{name}(): {what}", value, allowed, source=_SOURCE)
