"""Wrong keys: how many an address may try, what the others notice, what the log says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from myllm_core.keys import ApiKey, KeyFile, hash_key
from myllm_server import guesses
from myllm_server.guesses import Guesses
from support.server import Answer, LiveServer, StartServer

KEY = "correct-horse"


@pytest.fixture
def guarded(start: StartServer) -> Iterator[LiveServer]:
    with start(api_key=KEY, wrong_keys=3) as server:
        yield server


def ask(server: LiveServer, key: str, path: str = "/api/models") -> Answer:
    return server.get(path, headers={"authorization": f"Bearer {key}"})


def test_who_guesses_is_stopped_and_learns_nothing(guarded: LiveServer) -> None:
    assert [ask(guarded, f"guess{number}").status for number in range(4)] == [401, 401, 401, 429]
    wrong, right = ask(guarded, "guess"), ask(guarded, KEY)
    for answer in (wrong, right):
        assert (answer.status, answer.code) == (429, "too_many_wrong_keys")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
    assert wrong.message.split(";")[0] == right.message.split(";")[0]
    assert ask(guarded, KEY, "/v1/models").json["error"]["type"] == "rate_limit_error"
    assert guarded.get("/health").status == 200


def test_who_came_in_before_still_does(guarded: LiveServer) -> None:
    assert ask(guarded, KEY).status == 200
    assert [ask(guarded, "guess").status for _ in range(4)] == [401, 401, 401, 429]
    assert ask(guarded, KEY).status == 200


def test_a_request_without_a_key_is_no_guess(guarded: LiveServer) -> None:
    for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": "Basic Ym9iOng="}) * 3:
        assert guarded.get("/api/models", headers=headers).status == 401
    assert ask(guarded, KEY).status == 200


def test_each_wrong_key_has_a_line_without_the_key(guarded: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "myllm.audit"):
        refused = [ask(guarded, f"c4nary{number}") for number in range(6)]
    lines = [record for record in caplog.records if record.getMessage().startswith("wrong key at 127.0.0.1")]
    asked = [vars(line)["fields"]["request_id"] for line in lines]
    assert asked == [answer.headers["x-request-id"] for answer in refused[:3]]
    assert "no unknown key is looked at" in lines[-1].getMessage() and "c4nary" not in caplog.text


def test_a_key_that_was_revoked_and_made_again_is_a_new_one(start: StartServer, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "data")
    old = file.create("bob")
    with start(wrong_keys=1) as server:
        assert ask(server, old).status == 200
        file.revoke("bob")
        new = file.create("bob")
        assert [ask(server, old).status, ask(server, new).status] == [401, 429]


def at(client: str) -> dict[str, object]:
    return {"type": "http", "method": "GET", "path": "/", "client": (client, 1)}


def test_addresses_are_apart_and_tries_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(guesses.time, "monotonic", lambda: now[0])
    tries = Guesses(2)
    assert [tries.refusal(at("10.0.0.1"), None) is None for _ in range(3)] == [True, True, False]
    assert tries.refusal(at("10.0.0.2"), None) is None
    refusal = tries.refusal(at("10.0.0.1"), None)
    assert refusal is not None and refusal.headers["retry-after"] == "30"
    now[0] = 30.0
    assert tries.refusal(at("10.0.0.1"), None) is None
    assert tries.refusal(at("10.0.0.1"), None) is not None


def test_no_limit() -> None:
    tries = Guesses(0)
    assert all(tries.refusal(at("10.0.0.1"), None) is None for _ in range(100))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guesses, "_MOST_KNOWN", 2)
    tries, holder = Guesses(1), ApiKey(name="bob", sha256=hash_key(b"k"))
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        assert tries.refusal(at(client), holder) is None
        assert tries.refusal(at(client), None) is None
    assert tries.refusal(at("10.0.0.1"), holder) is not None
    assert tries.refusal(at("10.0.0.3"), holder) is None
