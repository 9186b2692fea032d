"""Who a process is."""

from __future__ import annotations

import os
import re

from flotta.instance import Instance


def test_id_is_made_from_service_host_and_process() -> None:
    me = Instance.here(service="api", region="eu")
    assert me.id.startswith("api-")
    assert me.id.endswith(f"-{os.getpid()}")
    assert str(me) == me.id


def test_long_service_leaves_a_valid_id_that_still_names_the_process() -> None:
    me = Instance.here(service="s" * 63, region="eu")
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", me.id)
    assert me.id.endswith(f"-{os.getpid()}")


def test_given_id_is_kept_and_incarnations_differ_and_grow() -> None:
    made = [Instance.here(service="api", region="eu", id="api.1") for _ in range(100)]
    assert {me.id for me in made} == {"api.1"}
    assert len({me.incarnation for me in made}) == 100
    assert made[0].incarnation[:12] <= made[-1].incarnation[:12]
