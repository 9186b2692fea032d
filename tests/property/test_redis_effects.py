"""Laws of the tables by which commands are repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flotta.errors import Outcome
from flotta.redis.effects import Effect, effect_of, effect_of_batch, is_repeatable, outcome_of
from flotta.redis.routing import Route, block_limit_s, route_of

WORDS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ.", min_size=1, max_size=12)
ARGUMENTS = st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=8), st.integers(), st.floats()), max_size=6)
TAKES_OR_ADDS = [
    "INCR", "DECR", "INCRBY", "HINCRBY", "APPEND", "LPUSH", "RPUSH", "LPOP", "RPOP", "SPOP", "XADD", "ZINCRBY", "LTRIM",
    "PUBLISH", "XREADGROUP", "ZPOPMIN", "LMOVE",
]  # fmt: skip
UNKNOWABLE = ["EVAL", "EVALSHA", "FCALL", "GETSET", "GETDEL", "SETNX", "HSETNX", "MSETNX", "BLPOP", "MULTI", "NOSUCH"]


@given(name=WORDS, arguments=ARGUMENTS)
def test_effect_does_not_depend_on_how_the_name_is_written(name: str, arguments: list[object]) -> None:
    effects = {effect_of((spelt, *arguments)) for spelt in (name, name.lower(), name.encode(), name.lower().encode())}
    assert len(effects) == 1


@given(arguments=ARGUMENTS)
@pytest.mark.parametrize("name", TAKES_OR_ADDS + UNKNOWABLE)
def test_what_a_second_run_would_spoil_is_never_repeated_after_a_lost_reply(name: str, arguments: list[object]) -> None:
    assert not is_repeatable(Outcome.AMBIGUOUS, effect_of((name, *arguments)))


@pytest.mark.parametrize(
    "command",
    [
        ("BITOP", "XOR", "a", "a", "b"),
        (b"bitop", b"NOT", "a", b"a"),
        ("SDIFFSTORE", "a", "b", b"a"),
        ("ZUNIONSTORE", "a", 2, "b", "a"),
        ("ZRANGESTORE", "a", "a", 1, -1),
        ("GEOADD", "g", "NX", 1, 1, "m"),
        ("PEXPIREAT", "k", 1, "nx"),
        ("HEXPIRE", "k", 10, "NX", "FIELDS", 1, "f"),
        ("SET", "k", "v", "IFDNE", "x"),
    ],
)
def test_what_depends_on_its_own_first_run_is_never_repeated(command: tuple[object, ...]) -> None:
    assert effect_of(command) is Effect.NEVER


@pytest.mark.parametrize(
    ("commands", "is_harmless"),
    [
        ([("SET", "a", 1), ("DEL", "b"), ("GET", "a"), ("LRANGE", "q", 0, -1)], True),
        ([("GET", "a"), ("GET", "b")], True),
        ([("LRANGE", "q", 0, -1), ("DEL", "q")], False),
        ([("SET", "x", 1), ("GET", "a"), ("SET", "a", 2)], False),
        ([("ZRANGESTORE", "b", "a", 0, 9), ("ZREMRANGEBYSCORE", "a", 0, 9)], False),
        ([("SET", "a", 1), ("INCR", "b")], False),
        ([], True),
    ],
)
def test_a_batch_that_reads_before_it_writes_is_never_repeated_after_a_lost_reply(
    commands: list[tuple[object, ...]], is_harmless: bool
) -> None:
    assert is_repeatable(Outcome.AMBIGUOUS, effect_of_batch(commands)) == is_harmless


@given(effect=st.sampled_from(Effect), ceiling=st.sampled_from(Effect))
def test_outcome_decides_first_then_the_ceiling(effect: Effect, ceiling: Effect) -> None:
    assert is_repeatable(Outcome.NOT_APPLIED, effect, ceiling)
    assert not is_repeatable(Outcome.APP, effect, ceiling)
    assert is_repeatable(Outcome.AMBIGUOUS, effect, ceiling) == (effect <= ceiling)


@given(flags=st.lists(st.sampled_from(["EX", "10", "XX", "KEEPTTL", "PX", b"nx", "NX", "GET", "get"]), max_size=5))
def test_set_is_repeatable_exactly_without_an_option_whose_reply_decides(flags: list[str | bytes]) -> None:
    decides = any((flag.decode() if isinstance(flag, bytes) else flag).upper() in {"NX", "GET"} for flag in flags)
    expected = Effect.NEVER if decides else Effect.LAST_WRITE_WINS
    assert effect_of(("SET", "key", "NX", *flags)) is expected, "a value that reads NX is no option"


@given(command=st.one_of(WORDS, st.just("EVALSHA")), text=st.text(max_size=60))
def test_an_error_reply_is_never_ambiguous(command: str, text: str) -> None:
    assert outcome_of(text, command) in {Outcome.APP, Outcome.NOT_APPLIED}


@pytest.mark.parametrize(
    "text",
    [
        "LOADING Valkey is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
    ],
)
def test_refusals_before_running_are_not_applied_also_for_scripts(text: str) -> None:
    assert outcome_of(text, "SET") is Outcome.NOT_APPLIED
    assert outcome_of(text, "EVALSHA") is Outcome.NOT_APPLIED


@given(code=st.sampled_from(["BUSY", "LOADING", "READONLY", "TRYAGAIN", "MOVED", "MISCONF"]), rest=WORDS)
def test_an_error_that_a_script_makes_up_counts_as_its_answer(code: str, rest: str) -> None:
    assert outcome_of(f"{code} {rest}", "EVALSHA") is Outcome.APP


@pytest.mark.parametrize(
    "text", ["WRONGTYPE Operation", "ERR syntax error", "NOSCRIPT No matching", "BUSYGROUP exists"]
)
def test_answers_are_answers(text: str) -> None:
    assert outcome_of(text, "XGROUP") is Outcome.APP


@given(name=WORDS, arguments=ARGUMENTS)
def test_every_command_has_a_route(name: str, arguments: list[object]) -> None:
    assert route_of((name, *arguments)) in Route
    limit_s = block_limit_s((name, *arguments))
    assert limit_s is None or limit_s > 0


@pytest.mark.parametrize(
    ("command", "limit_s"),
    [
        (("BLPOP", "a", "b", 1.5), 1.5),
        (("BLPOP", "a", 0), float("inf")),
        (("BLMPOP", 2, 1, "k", "LEFT"), 2.0),
        (("WAIT", 1, 500), 0.5),
        (("XREAD", "COUNT", 1, b"BLOCK", b"250", "STREAMS", "s", "$"), 0.25),
        (("XREAD", "COUNT", 1, "STREAMS", "BLOCK", "0"), None),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "s", ">"), float("inf")),
        (("XREADGROUP", "GROUP", "BLOCK", "c", "STREAMS", "s", ">"), None),
        (("GET", "BLOCK"), None),
    ],
)
def test_block_limit_is_read_from_the_arguments(command: tuple[object, ...], limit_s: float | None) -> None:
    assert block_limit_s(command) == limit_s
