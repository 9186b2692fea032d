"""The chat's REST API on three real instances, the same on FastAPI and on Flask."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chat_stage import DEMO, Stage, chat_stage, other_address, token
from flotta.postgres import EmbeddedPostgres


@pytest.fixture(scope="module", params=["fastapi", "flask"])
def chat(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    valkey_url: str,
    postgres_server: EmbeddedPostgres,
) -> Iterator[Stage]:
    with chat_stage(tmp_path_factory.mktemp("chat"), valkey_url, postgres_server, request.param) as running:
        yield running


def error(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_a_registered_user_signs_in_with_the_password_and_with_no_other(chat: Stage) -> None:
    made = chat.register(display="Dorothy Vaughan")
    name = made["user"]["name"]
    assert made["user"]["display"] == "Dorothy Vaughan"
    assert made["expires_in_s"] == 900
    right = chat.ask("POST", "/api/session", {"name": name.upper(), "password": "correct horse battery"})
    assert right.status_code == 200
    assert right.json()["user"] == made["user"]
    for wrong in ({"name": name, "password": "correct horse"}, {"name": "nobody.here", "password": "correct horse"}):
        assert error(chat.ask("POST", "/api/session", wrong, headers=other_address())) == (401, "not_signed_in")
    assert error(chat.ask("POST", "/api/session", {"name": "ada", "password": "!"})) == (401, "not_signed_in")
    taken = chat.ask("POST", "/api/users", {"name": name, "password": "correct horse battery"}, headers=other_address())
    assert error(taken) == (409, "name_taken")
    stored = chat.rows("SELECT password_hash FROM users WHERE name = %s", name)[0][0]
    assert stored.startswith("scrypt:32768-8-3:")


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"name": "Bob", "password": "correct horse"}, "name"),
        ({"name": "bob", "password": "too short"}, "password"),
        ({"name": "bob"}, "password"),
        ({"name": "bob", "password": "correct horse", "admin": True}, "admin"),
        ({"name": "bob", "password": "correct horse", "display": "x" * 61}, "display"),
        ({"name": "bob", "password": "correct horse", "display": "nul \0"}, "display"),
        ([], "object"),
    ],
)
def test_what_does_not_fit_is_refused_and_says_where(chat: Stage, body: Any, refusal: str) -> None:
    answer = chat.ask("POST", "/api/users", body)
    assert error(answer) == (422, "does_not_fit")
    assert refusal in answer.json()["error"]["message"]


def test_bodies_that_are_no_json_or_too_large_are_refused(chat: Stage) -> None:
    ada = chat.demo("ada")
    assert error(chat.ask("POST", "/api/rooms", token=ada, content=b"{")) == (400, "not_json")
    assert error(chat.ask("POST", "/api/rooms", token=ada, content=b'"\xff"')) == (400, "not_json")
    assert error(chat.ask("POST", "/api/rooms", token=ada, content=b"[" * 30_000)) == (400, "not_json")
    assert chat.ask("POST", "/api/rooms", {"name": "x" * 40_000}, token=ada).status_code == 413


def test_only_an_unchanged_token_of_ours_that_has_not_ended_opens_anything(chat: Stage) -> None:
    ada = chat.demo("ada")
    now_s = time.time()
    good = token(1, ends_s=now_s + 60)
    assert chat.ask("GET", "/api/rooms", token=good).status_code == 200
    bad = [
        token(1, ends_s=now_s - 1),
        token(1, ends_s=now_s + 60, secret="another secret, just as long as this one"),
        ada[:-4] + "AAAA",
        ada.replace("quay1", "quay2"),
        "quay1..",
        "ä",
        "x" * 5_000,
    ]
    for one in bad:
        answer = chat.ask("GET", "/api/rooms", headers={"authorization": f"Bearer {one}".encode()})
        assert error(answer) == (401, "not_signed_in"), one
    assert error(chat.ask("GET", "/api/rooms")) == (401, "no_token")
    assert error(chat.ask("GET", "/api/rooms", headers={"authorization": f"Basic {ada}"})) == (401, "no_token")
    for method, path in (("GET", "/api/users"), ("POST", "/api/direct"), ("DELETE", "/api/rooms/1/members/me")):
        assert chat.ask(method, path).status_code == 401


def test_a_token_is_renewed_until_the_session_is_too_old(chat: Stage) -> None:
    now_s = time.time()
    fresh = chat.ask("POST", "/api/session/renew", token=token(1, ends_s=now_s + 5, signed_in_s=now_s - 40_000))
    assert fresh.status_code == 200
    assert chat.ask("GET", "/api/rooms", token=fresh.json()["token"]).status_code == 200
    old = token(1, ends_s=now_s + 5, signed_in_s=now_s - 50_000)
    assert error(chat.ask("POST", "/api/session/renew", token=old)) == (401, "not_signed_in")
    nobody = token(999_999, ends_s=now_s + 5)
    assert error(chat.ask("POST", "/api/session/renew", token=nobody)) == (401, "not_signed_in")


def test_attempts_are_counted_for_the_whole_fleet(chat: Stage) -> None:
    headers = other_address()
    body = {"name": "linus", "password": "guess"}
    for attempts in range(60):  # noqa: B007 - ten, and one more for every six seconds that they take
        answer = chat.ask("POST", "/api/session", body, headers=headers)
        if answer.status_code != 401:
            break
    assert error(answer) == (429, "too_many_attempts")
    assert 10 <= attempts < 30
    assert int(answer.headers["retry-after"]) >= 1


# --- rooms and messages -----------------------------------------------------------------------------------------------


def test_rooms_are_opened_joined_and_left(chat: Stage) -> None:
    ada, grace = chat.demo("ada"), chat.demo("grace")
    room_id = chat.room(ada)
    name = chat.rooms(ada)[room_id]["name"]
    assert error(chat.ask("POST", "/api/rooms", {"name": name.upper()}, token=grace)) == (409, "name_taken")
    assert room_id in [room["id"] for room in chat.ask("GET", "/api/rooms", token=grace).json()["others"]]
    for method, path in (("GET", "messages"), ("GET", "members"), ("DELETE", "members/me")):
        assert error(chat.ask(method, f"/api/rooms/{room_id}/{path}", token=grace)) == (403, "not_a_member")
    assert error(chat.post(grace, room_id, "hello")) == (403, "not_a_member")

    joined = chat.ask("POST", f"/api/rooms/{room_id}/members", token=grace)
    assert (joined.status_code, joined.json()["members"]) == (200, 2)
    assert chat.ask("POST", f"/api/rooms/{room_id}/members", token=grace).json()["members"] == 2
    names = [one["name"] for one in chat.ask("GET", f"/api/rooms/{room_id}/members", token=ada).json()["members"]]
    assert names == ["ada", "grace"]
    assert chat.ask("DELETE", f"/api/rooms/{room_id}/members/me", token=grace).status_code == 204
    assert error(chat.post(grace, room_id, "still here?")) == (403, "not_a_member")
    assert error(chat.ask("POST", "/api/rooms/999999/members", token=ada)) == (404, "no_such_room")
    assert chat.history(ada, room_id) == {"messages": [], "more": False}


def test_a_message_that_is_sent_again_is_the_same_message(chat: Stage) -> None:
    ada = chat.demo("ada")
    room_id = chat.room(ada)
    client_id = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: chat.post(ada, room_id, "once", client_id), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert [answer.json() for answer in answers] == [answers[0].json()] * 24
    assert [message["body"] for message in chat.history(ada, room_id)["messages"]] == ["once"]
    assert chat.rooms(ada)[room_id]["last_id"] == 1, "a retry takes no number"
    assert error(chat.post(ada, room_id, "other words", client_id)) == (409, "client_id_used")
    assert chat.post(chat.demo("mary"), 1, "mine", client_id).status_code == 201, "another user's id is another's"


def test_numbers_have_no_gaps_however_many_write_at_once(chat: Stage) -> None:
    tokens = [chat.demo(name) for name in DEMO]
    room_id = chat.room(tokens[0], *tokens[1:])
    with ThreadPoolExecutor(12) as threads:
        posted = list(threads.map(lambda n: chat.post(tokens[n % 4], room_id, f"line {n}").json(), range(60)))
    assert sorted(message["id"] for message in posted) == list(range(1, 61))
    stored = chat.history(tokens[0], room_id, limit=200)["messages"]
    assert [message["id"] for message in stored] == list(range(1, 61))
    assert {message["id"]: message["body"] for message in stored} == {one["id"]: one["body"] for one in posted}


def test_history_is_read_in_pages_in_both_directions(chat: Stage) -> None:
    ada = chat.demo("ada")
    room_id = chat.room(ada)
    for number in range(1, 8):
        chat.post(ada, room_id, f"line {number}")

    def ids(**params: Any) -> tuple[list[int], bool]:
        found = chat.history(ada, room_id, **params)
        return [message["id"] for message in found["messages"]], found["more"]

    assert ids(limit=3) == ([5, 6, 7], True)
    assert ids(limit=3, before=5) == ([2, 3, 4], True)
    assert ids(limit=3, before=2) == ([1], False)
    assert ids(limit=3, after=0) == ([1, 2, 3], True)
    assert ids(limit=3, after=4) == ([5, 6, 7], False)
    assert ids(after=7) == ([], False)
    for wrong in ({"limit": 0}, {"limit": 201}, {"limit": "x"}, {"before": -1}, {"after": 10**30}):
        answer = chat.ask("GET", f"/api/rooms/{room_id}/messages", token=ada, params=wrong)
        assert error(answer) == (422, "does_not_fit"), wrong


def test_two_users_have_one_direct_room_and_nobody_else_gets_in(chat: Stage) -> None:
    one, other, third = chat.register(), chat.register(), chat.register()
    asked = [(one["token"], other["user"]["id"]), (other["token"], one["user"]["id"])] * 6
    with ThreadPoolExecutor(6) as threads:
        rooms = list(threads.map(lambda pair: chat.ask("POST", "/api/direct", {"user": pair[1]}, token=pair[0]), asked))
    assert len({room.json()["id"] for room in rooms}) == 1
    assert [room.json()["other"]["id"] for room in rooms] == [user_id for _, user_id in asked]
    room_id = rooms[0].json()["id"]
    for path, method in (("members", "POST"), ("messages", "GET")):
        assert chat.ask(method, f"/api/rooms/{room_id}/{path}", token=third["token"]).status_code in (403, 404)
    leaving = chat.ask("DELETE", f"/api/rooms/{room_id}/members/me", token=one["token"])
    assert error(leaving) == (403, "not_a_member"), "direct rooms cannot be left"
    myself = chat.ask("POST", "/api/direct", {"user": one["user"]["id"]}, token=one["token"])
    assert error(myself) == (422, "does_not_fit")
    assert error(chat.ask("POST", "/api/direct", {"user": 999_999}, token=one["token"])) == (404, "no_such_user")


def test_unread_counts_what_came_since_one_joined_or_wrote(chat: Stage) -> None:
    ada, grace = chat.demo("ada"), chat.demo("grace")
    room_id = chat.room(ada)
    chat.post(ada, room_id, "before")
    chat.ask("POST", f"/api/rooms/{room_id}/members", token=grace)

    def unread(who: str) -> int:
        room = chat.rooms(who)[room_id]
        return int(room["last_id"] - room["read_id"])

    assert unread(grace) == 0
    chat.post(ada, room_id, "one")
    chat.post(ada, room_id, "two")
    assert (unread(ada), unread(grace)) == (0, 2)
    chat.post(grace, room_id, "three")
    assert (unread(ada), unread(grace)) == (1, 0)
    assert chat.rooms(ada)[room_id]["last"]["body"] == "three"


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_served_strictly_and_nothing_else_is(chat: Stage) -> None:
    page = chat.ask("GET", "/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert chat.ask("GET", "/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    for path in ("/js/main.js", "/js/ui/sidebar.js", "/style.css", "/icon.svg"):
        assert chat.ask("GET", path).status_code == 200, path
    for path in (
        "/../package.json",
        "/package.json",
        "/node_modules/.package-lock.json",
        "/js/nothing.js",
        "/api/nothing",
    ):
        assert error(chat.ask("GET", path)) == (404, "not_found"), path
    assert error(chat.ask("PUT", "/api/rooms")) == (405, "method_not_allowed")
    for answer in (page, chat.ask("GET", "/api/about"), chat.ask("GET", "/nothing")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
    about = chat.ask("GET", "/api/about").json()
    assert about["framework"].lower() == chat.framework
    assert [user["name"] for user in about["demo"]] == list(DEMO)
