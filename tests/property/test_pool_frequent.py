"""The keys that stand out, held to what the space-saving algorithm promises."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flotta.pool.stats import Frequent


@given(keys=st.lists(st.integers(0, 12).map(str), max_size=200), limit=st.integers(1, 6))
def test_frequent_keys_are_there_and_counts_are_never_too_low(keys: list[str], limit: int) -> None:
    frequent = Frequent(limit)
    for key in keys:
        frequent.add(key)
    real = Counter(keys)
    kept = dict(frequent.top(limit))
    assert len(kept) == min(limit, len(real))
    assert sum(kept.values()) == len(keys)
    assert all(kept[key] >= real[key] for key in kept)
    assert all(key in kept for key, count in real.items() if count > len(keys) / limit)
    if len(kept) == limit:
        assert all(count <= real[key] + min(kept.values()) for key, count in kept.items())


def test_the_rarest_key_makes_room() -> None:
    frequent = Frequent(2)
    for key in ["a", "a", "a", "b", "b", "c"]:
        frequent.add(key)
    assert frequent.top() == [("a", 3), ("c", 3)]
