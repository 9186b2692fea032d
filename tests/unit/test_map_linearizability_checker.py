"""The checker tells right histories from wrong ones."""

from __future__ import annotations

from linearizability import UNKNOWN, Operation, is_linearizable


def register(state: int, call: tuple[str, int]) -> tuple[int, int]:
    """A register: write gives the old value, read the present one."""
    name, value = call
    return (value, state) if name == "write" else (state, state)


def test_a_read_that_overlaps_a_write_may_see_either() -> None:
    for seen in (0, 1):
        history = [Operation(0, 3, ("write", 1), 0), Operation(1, 2, ("read", 0), seen)]
        assert is_linearizable(history, 0, register)


def test_a_read_after_a_write_must_see_it() -> None:
    history = [Operation(0, 1, ("write", 1), 0), Operation(2, 3, ("read", 0), 0)]
    assert not is_linearizable(history, 0, register)


def test_reads_must_not_go_back() -> None:
    history = [
        Operation(0, 9, ("write", 1), 0),
        Operation(1, 2, ("read", 0), 1),
        Operation(3, 4, ("read", 0), 0),
    ]
    assert not is_linearizable(history, 0, register)


def test_an_unknown_write_may_have_happened_late_or_never() -> None:
    unknown = Operation(0, 1, ("write", 1), UNKNOWN)
    for seen in ((0, 0), (0, 1), (1, 1)):
        reads = [Operation(2 + i * 2, 3 + i * 2, ("read", 0), value) for i, value in enumerate(seen)]
        assert is_linearizable([unknown, *reads], 0, register)
    back = [Operation(2, 3, ("read", 0), 1), Operation(4, 5, ("read", 0), 0)]
    assert not is_linearizable([unknown, *back], 0, register)


def test_a_lost_update_is_found() -> None:
    """Two writers that both saw the same previous value."""
    history = [Operation(0, 5, ("write", 1), 0), Operation(0, 5, ("write", 2), 0)]
    assert not is_linearizable(history, 0, register)
