"""Harbor, on three real instances: a viewer sees what it may, where it may, and nothing more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from flotta.postgres import EmbeddedPostgres
from harbor_stage import SECRET, Stage, position, stage
from supervisor_service import wait_until


@pytest.fixture(scope="module")
def harbor(
    tmp_path_factory: pytest.TempPathFactory, valkey_url: str, postgres_server: EmbeddedPostgres
) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("harbor"), valkey_url, postgres_server) as running:
        yield running


def visible(harbor: Stage, session: str) -> set[str]:
    return {device["id"] for device in harbor.ask("GET", "/api/vessels", token=session).json()["devices"]}


async def test_a_share_shows_a_fleet_and_its_end_shows_nothing_from_then_on(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    viewer_email, viewer = harbor.account("Viewer")
    _, stranger = harbor.account("Stranger")
    device, token = harbor.device(owner)
    assert harbor.ask("POST", "/api/shares", {"viewer": viewer_email}, token=owner).status_code == 201
    assert visible(harbor, viewer) == {device}
    assert visible(harbor, stranger) == set()
    async with AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(harbor.page(viewer)) for _ in range(12)]
        outsider = await stack.enter_async_context(harbor.page(stranger))
        owners = await stack.enter_async_context(harbor.page(owner))
        served_by = {(await page.hello())["instance"] for page in [*pages, outsider, owners]}
        assert len(served_by) > 1, "the pages must be spread over instances"
        for n in range(10):
            harbor.ask("POST", "/api/positions", position(ago_s=100 - n), token=token)
        for page in pages:
            await page.wait(lambda page: len(page.fixes(device)) == 10, "ten positions")
        assert harbor.ask("DELETE", "/api/shares", {"viewer": viewer_email}, token=owner).status_code == 200
        seen = [len(page.fixes(device)) for page in pages]
        for n in range(20):
            harbor.ask("POST", "/api/positions", position(ago_s=50 - n), token=token)
        await owners.wait(lambda page: len(page.fixes(device)) == 30, "the owner sees all of them")
        assert [len(page.fixes(device)) for page in pages] == seen
        assert outsider.fixes(device) == []
    assert visible(harbor, viewer) == set()
    assert harbor.ask("GET", f"/api/vessels/{device}/track", token=viewer).status_code == 404


async def test_who_was_away_gets_nothing_of_what_was_revoked_meanwhile_and_misses_nothing_else(harbor: Stage) -> None:
    (_, owner), (_, other) = harbor.account("Owner"), harbor.account("Other")
    email, viewer = harbor.account("Viewer")
    kept, _ = harbor.device(owner)
    ended, _ = harbor.device(owner)
    fleet, fleet_token = harbor.device(other)
    gateway = harbor.ask("POST", "/api/gateways", {"label": "both"}, token=owner).json()["token"]
    for session, share in ((owner, {"device": kept}), (owner, {"device": ended}), (other, {})):
        assert harbor.ask("POST", "/api/shares", {"viewer": email, **share}, token=session).status_code == 201

    def sail(numbers: range) -> None:
        for n in numbers:
            both = {"positions": [position(ago_s=100 - n, device=device) for device in (kept, ended)]}
            assert harbor.ask("POST", "/api/positions/batch", both, token=gateway).json()["accepted"] == 2
            assert harbor.ask("POST", "/api/positions", position(ago_s=100 - n), token=fleet_token).status_code == 202

    async with harbor.page(viewer) as page:
        await page.hello()
        sail(range(3))
        await page.wait(lambda page: len(page.fixes(fleet)) == 3, "what is shared")
        assert len(page.fixes(ended)) == len(page.fixes(kept)) == 3
    sail(range(3, 10))
    for session, share in ((owner, {"device": ended}), (other, {})):
        assert harbor.ask("DELETE", "/api/shares", {"viewer": email, **share}, token=session).status_code == 200
    sail(range(10, 12))
    async with harbor.page(viewer, back=page) as again:
        await again.hello()
        assert again.pid == page.pid, "it has its session back"
        assert [fix[1] for fix in again.fixes(kept)] == sorted({fix[1] for fix in again.fixes(kept)})
        await again.wait(lambda page: len(page.fixes(kept)) == 9, "all that was missed")
        assert [name for name, _ in again.events].count("sharing") == 2, "so the page loads what it may see now"
        sail(range(12, 14))
        await again.wait(lambda page: len(page.fixes(kept)) == 11, "what comes now")
        assert again.fixes(ended) == again.fixes(fleet) == []


async def test_one_device_can_be_shared_alone(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    viewer_email, viewer = harbor.account("Viewer")
    shown, shown_token = harbor.device(owner)
    hidden, hidden_token = harbor.device(owner)
    harbor.ask("POST", "/api/shares", {"viewer": viewer_email, "device": shown}, token=owner)
    async with harbor.page(viewer) as page:
        await page.hello()
        harbor.ask("POST", "/api/positions", position(), token=hidden_token)
        harbor.ask("POST", "/api/positions", position(), token=shown_token)
        await page.wait(lambda page: page.fixes(shown), "the shared device")
        assert page.fixes(hidden) == []
        for one, other in ((shown, hidden), (hidden, shown)):
            both = {"devices": [{"id": one, "name": "Renamed"}, {"id": other, "name": "Renamed"}]}
            assert harbor.ask("PUT", "/api/devices", both, token=owner).json()["registered"] == 2
        await page.wait(lambda page: len(page.described()) == 2, "the shared device is described twice")
        assert {device["id"] for device in page.described()} == {shown}
    assert visible(harbor, viewer) == {shown}
    assert harbor.ask("GET", "/api/shares", token=owner).json()["shares"] == [{"viewer": viewer_email, "device": shown}]


def test_nobody_shares_or_renames_what_is_not_theirs(harbor: Stage) -> None:
    _, owner = harbor.account("Owner")
    _, other = harbor.account("Other")
    device, token = harbor.device(owner)
    assert (
        harbor.ask("POST", "/api/shares", {"viewer": "demo@harbor.example", "device": device}, token=other).status_code
        == 404
    )
    assert harbor.ask("POST", "/api/devices", {"id": device, "name": "Mine"}, token=other).status_code == 409
    taken = harbor.ask("PUT", "/api/devices", {"devices": [{"id": device, "name": "Mine"}]}, token=other)
    assert taken.json() == {"registered": 0, "taken": [device]}
    assert harbor.ask("PUT", "/api/devices", {"devices": [{"id": device}]}, token=token).status_code == 403
    assert harbor.ask("POST", f"/api/devices/{device}/token", token=other).status_code == 404


async def test_a_connection_ends_with_its_token_unless_it_is_renewed(harbor: Stage) -> None:
    from harbor.accounts.tokens import Claims, sign_token

    harbor.account()
    account_id = harbor.rows("SELECT max(id) FROM accounts")[0][0]

    def token(ttl_s: float, account_id: int = account_id) -> str:
        now_s = time.time()
        return sign_token(Claims(account_id=account_id, signed_in_s=now_s, ends_s=now_s + ttl_s), SECRET.encode())

    async with harbor.page(token(2.0)) as renewed, harbor.page(token(3.5)) as left_alone:
        await renewed.hello()
        assert await renewed.ask("renew", token(60, account_id - 1)) == [False], "another account's"
        assert await renewed.ask("renew", "\ud800") == [False]
        assert await renewed.ask("renew", token(60)) == [True]
        await left_alone.wait(lambda page: page.closed.is_set(), "the end of the connection")
        assert not renewed.closed.is_set(), "its first token ended long before"
        (status,) = await renewed.ask("status")
        assert len(status["instances"]) == 3


async def test_a_page_without_a_good_token_is_refused(harbor: Stage) -> None:
    _, session = harbor.account()
    for token in ("", "h1.W10.x", session[:-2] + "xx"):
        async with harbor.page(token) as page:
            await page.wait(lambda page: page.refusal, "the refusal")
        assert harbor.ask("GET", "/api/vessels", token=token or "none").status_code == 401


def test_signing_in_needs_the_password_and_tries_are_counted(harbor: Stage) -> None:
    email, _ = harbor.account()
    right = {"email": email.upper(), "password": "correct horse battery"}
    assert harbor.ask("POST", "/api/session", right).status_code == 200
    answers = [
        harbor.ask("POST", "/api/session", {"email": email, "password": f"wrong {n}"}).status_code for n in range(10)
    ]
    assert answers[:9] == [401] * 9
    assert answers[9] == 429
    again = {"email": email, "name": "Again", "password": "correct horse battery"}
    assert harbor.ask("POST", "/api/accounts", again).status_code == 409


def test_the_demo_account_has_no_password(harbor: Stage) -> None:
    for password in ("!", "", "demo"):
        answer = harbor.ask("POST", "/api/session", {"email": "demo@harbor.example", "password": password})
        assert answer.status_code in {401, 422}
    assert harbor.ask("POST", "/api/session/demo").json()["account"]["demo"] is True


def test_a_killed_instance_leaves_the_board_and_its_successor_joins_it(harbor: Stage) -> None:
    before = wait_until(lambda: len(found := harbor.instances()) == 3 and found, "three instances")
    name, pid = next(iter(before.items()))
    harbor.kill(pid)
    after = wait_until(lambda: len(found := harbor.instances()) == 3 and found[name] != pid and found, "a new one", 20)
    assert {key: value for key, value in after.items() if key != name} == {
        key: value for key, value in before.items() if key != name
    }
