"""How a call travels: bound, checked and typed on both sides; wrong declarations are refused when they are made."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import ConfigError, WireError
from flotta.pool.signature import Signature

S = TypeVar("S")


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Place:
    lat: float
    lon: float
    tags: list[str] = dataclasses.field(default_factory=list)


class Order(msgspec.Struct):
    id: int
    customer: Place | None = None


class Options(TypedDict):
    loud: bool


class Model(pydantic.BaseModel):
    when: dt.datetime
    amount: decimal.Decimal


class Context: ...


class Job(Generic[S]): ...


class Opaque: ...


class Depends:
    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn


NOW = dt.datetime(2026, 11, 22, 12, 30, 1, 250_000, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, -(2**63)),
        (float, 0.1),
        (str, "é"),
        (bytes, b"\x00\xff"),
        (dt.datetime, NOW),
        (dt.datetime, NOW.replace(tzinfo=None)),
        (dt.date, NOW.date()),
        (dt.timedelta, dt.timedelta(seconds=1.5)),
        (uuid.UUID, uuid.UUID(int=7)),
        (decimal.Decimal, decimal.Decimal("1.10")),
        (Colour, Colour.RED),
        (Place, Place(1.0, 2.0, ["a"])),
        (Order, Order(1, Place(1.0, 2.0))),
        (Options, {"loud": True}),
        (int | None, None),
        (dict[str, list[Place]], {"a": [Place(0.0, 0.0)]}),
        (set[int], {1, 2}),
        (tuple[int, str], (1, "a")),
        (Model, Model(when=NOW, amount=decimal.Decimal("2.50"))),
        (list[Model], [Model(when=NOW, amount=decimal.Decimal("2.50"))]),
        (Any, {"a": [1, None, "b"]}),
    ],
    ids=str,
)
def test_argument_comes_back_as_its_annotation_says(annotation, value):
    def fn(x): ...

    fn.__annotations__ = {"x": annotation}
    signature = Signature.of(fn)
    [(name, found)] = signature.decode(signature.encode((value,), {})).items()
    assert name == "x"
    assert found == value
    assert type(found) is type(value)


def call(a: int, b: str = "b", *, c: float = 0.5, d: bytes) -> Order | None: ...


@given(st.integers(-(2**63), 2**63 - 1), st.text(), st.floats(allow_nan=False), st.binary())
def test_call_round_trips_however_its_arguments_are_given(a, b, c, d):
    signature = Signature.of(call)
    wanted = {"a": a, "b": b, "c": c, "d": d}
    for args, kwargs in (((a, b), {"c": c, "d": d}), ((a,), {"b": b, "c": c, "d": d}), ((), wanted)):
        assert signature.decode(signature.encode(args, kwargs)) == wanted


def test_default_is_filled_in():
    signature = Signature.of(call)
    assert signature.decode(signature.encode((1,), {"d": b""})) == {"a": 1, "b": "b", "c": 0.5, "d": b""}


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {"d": b""}, "missing a required argument: 'a'"),
        ((1, "b", 0.5), {"d": b""}, "too many positional arguments"),
        ((1,), {"d": b"", "a": 1}, "multiple values for argument 'a'"),
        ((1,), {"d": b"", "e": 1}, "unexpected keyword argument 'e'"),
        (("1",), {"d": b""}, "Expected `int`, got `str` at `a`"),
        ((2**70,), {"d": b""}, "serialize ints"),
        ((1, Opaque()), {"d": b""}, "Opaque has no MessagePack form"),
    ],
)
def test_call_that_does_not_fit_is_a_type_error_where_it_is_made(args, kwargs, words):
    with pytest.raises(TypeError, match=words) as caught:
        Signature.of(call).encode(args, kwargs)
    assert "call()" in str(caught.value)


def test_old_and_new_code_share_a_pool():
    def old(a: int, gone: str = "x"): ...

    def new(a: int, added: list[int] = [1, 2]): ...  # noqa: B006

    assert Signature.of(new).decode(Signature.of(old).encode((1,), {})) == {"a": 1, "added": [1, 2]}
    assert Signature.of(old).decode(Signature.of(new).encode((1,), {})) == {"a": 1, "gone": "x"}


@given(st.binary(max_size=64))
def test_junk_raises_only_wire_error(data):
    signature = Signature.of(call)
    try:
        found = signature.decode(data)
    except WireError:
        return
    assert set(found) == {"a", "b", "c", "d"}


def test_wrong_type_on_the_wire_names_the_parameter():
    with pytest.raises(WireError, match="`a`"):
        Signature.of(call).decode(msgspec.msgpack.encode({"a": "no", "d": b""}))


def test_deeply_nested_junk_is_a_wire_error():
    def fn(x: Any): ...

    with pytest.raises(WireError):
        Signature.of(fn).decode(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0")


def test_injected_parameters_do_not_travel():
    async def fn(
        job: Job[Place], a: int, context: Context, b: int = 2, *, db: Annotated[str, Depends(str)], raw: Any = None
    ): ...

    signature = Signature.of(fn, skip=(Job, Context, Depends, "raw"))
    assert signature.parameters == ("a", "b")
    assert set(signature.injected) == {"job", "context", "db", "raw"}
    assert signature.decode(signature.encode((1, 3), {})) == {"a": 1, "b": 3}


def test_dependency_given_as_a_class_is_skipped():
    def fn(a: int, db: Annotated[str, Depends]): ...

    assert Signature.of(fn, skip=(Depends,)).parameters == ("a",)


def test_default_none_makes_a_parameter_optional():
    def fn(a: int = None): ...  # noqa: RUF013

    signature = Signature.of(fn)
    assert signature.decode(signature.encode((), {})) == {"a": None}


def test_local_type_is_found_when_its_namespace_is_given():
    @dataclasses.dataclass
    class Local:
        a: int

    def fn(x: Local): ...

    with pytest.raises(ConfigError, match="Local"):
        Signature.of(fn)
    signature = Signature.of(fn, localns=locals())
    assert signature.decode(signature.encode((Local(1),), {})) == {"x": Local(1)}


def star(*args: int): ...
def stars(**kwargs: int): ...
def positional(a: int, /): ...
def opaque(a: dict[str, list[Opaque]]): ...
def unfit(a: int = "one"): ...  # type: ignore[assignment]
def untravelling(a: Any = Opaque()): ...  # noqa: B008
def ambiguous(a: Order | Place): ...
def unresolved(a: Missing): ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (star, r"no \*args"),
        (stars, r"no \*\*kwargs"),
        (positional, "given by its name"),
        (opaque, "not Opaque"),
        (unfit, "Expected `int`, got `str`"),
        (untravelling, "Opaque has no MessagePack form"),
        (ambiguous, "a type that msgspec can decode"),
        (unresolved, "Missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_function_that_cannot_travel_is_refused_when_declared(fn, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Signature.of(fn)
    assert f"{fn.__name__}()" in str(caught.value)


def test_template_is_filled_with_the_arguments_of_a_call():
    fill = Signature.of(call).template("order:{a}:{b}")
    assert fill((7,), {"d": b""}) == "order:7:b"
    assert fill((), {"a": 8, "b": "c", "d": b""}) == "order:8:c"


def test_template_reaches_into_arguments():
    def fn(order: Order, day: dt.date): ...

    fill = Signature.of(fn).template("{order.id}:{day:%Y%m%d}")
    assert fill((Order(3), NOW.date()), {}) == "3:20261122"


@pytest.mark.parametrize("text", ["{nope}", "{}", "{0}", "{a", "{nope.a}", "{a:{nope}}"])
def test_wrong_template_is_refused_when_declared(text):
    with pytest.raises(ConfigError):
        Signature.of(call).template(text)


def test_template_refuses_a_call_that_does_not_fit():
    with pytest.raises(TypeError, match="missing"):
        Signature.of(call).template("{a}")((), {})


def test_result_is_typed_both_ways():
    codec = Signature.of(call).result
    assert codec.decode(codec.encode(Order(1))) == Order(1)
    assert codec.decode(codec.encode(None)) is None
    with pytest.raises(TypeError, match="result of call"):
        codec.encode("no order")
    with pytest.raises(WireError, match="result of call"):
        codec.decode(b"\xa1x")


def test_result_without_a_form_is_refused_only_when_asked_for():
    def fn() -> Opaque: ...

    signature = Signature.of(fn)
    with pytest.raises(ConfigError, match="Opaque"):
        _ = signature.result


def test_bound_methods_and_callable_objects_have_signatures():
    class Service:
        def handle(self, a: int) -> int: ...

        def __call__(self, b: int) -> int: ...

    assert Signature.of(Service().handle).parameters == ("a",)
    assert Signature.of(Service()).parameters == ("b",)
