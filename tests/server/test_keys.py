"""Named keys: what each opens, how much it may use, whose sessions it sees; a running server takes changes at once."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from myllm_core.errors import ConfigError
from myllm_core.keys import DayUse, KeyFile, today
from myllm_core.runtime.runtime import Runtime
from myllm_server.openai.errors import error_shape
from myllm_server.owned import OwnedRuntime
from myllm_server.scopes import scope_for
from support.server import Answer, LiveServer, StartServer, eventually, live_server, read_until

HELLO = {"role": "user", "content": "hi"}
CHAT = {"model": "echo", "messages": [HELLO], "stream": False}


class Doors:
    """A server, and a way to call it with a key of a name."""

    def __init__(self, live: LiveServer) -> None:
        self.live = live
        self.file = KeyFile(live.settings.data_dir)
        self.secrets: dict[str, str] = {}

    def make(self, name: str, *scopes: Any, **limits: int) -> str:
        self.secrets[name] = self.file.create(name, scopes or ("chat",), **limits)
        return self.secrets[name]

    def __call__(self, name: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return self.live.request(method, path, body, {"authorization": f"Bearer {self.secrets[name]}", **headers})

    def chat(self, name: str, text: str = "hi", **more: Any) -> Answer:
        return self(name, "POST", "/api/chat", CHAT | {"messages": [{"role": "user", "content": text}]} | more)


@pytest.fixture
def doors(start: StartServer) -> Iterator[Doors]:
    with start(wrong_keys=0) as live:
        yield Doors(live)


def test_a_running_server_takes_keys_and_gives_them_up_at_once(doors: Doors) -> None:
    assert doors.live.get("/api/ps").status == 200
    doors.make("ops", "manage")
    assert doors.live.get("/api/ps").status == 401
    assert doors("ops", "GET", "/api/ps").status == 200
    doors.make("bob")
    assert doors("bob", "GET", "/api/models").status == 200
    doors.file.revoke("bob")
    assert doors("bob", "GET", "/api/models").status == 401
    doors.file.revoke("ops")
    assert doors.live.get("/api/ps").status == 401, "a server that had a key doesn't open when the last one goes"
    assert doors.live.get("/health").status == 200


def test_a_damaged_key_file_opens_nothing(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    doors.make("ops", "manage")
    assert doors("ops", "GET", "/api/ps").status == 200
    good = doors.file.path.read_bytes()
    doors.file.path.write_text("{")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert doors("ops", "GET", "/api/ps").status == 401
            assert doors.live.get("/api/ps").status == 401
    assert caplog.text.count("no named key opens this server until this is mended") == 1
    doors.file.path.write_bytes(good)
    assert doors("ops", "GET", "/api/ps").status == 200


def test_a_damaged_key_file_at_start_is_a_configuration_error(start: StartServer, tmp_path: Path) -> None:
    from myllm_core.plugins import load_plugins
    from myllm_core.settings import Settings
    from myllm_server.app import create_app

    (tmp_path / "keys.json").write_text("{}")
    settings, plugins = Settings(data_dir=tmp_path, models_dir=tmp_path), load_plugins()
    with pytest.raises(ConfigError, match="keys.json can't be used"):
        create_app(Runtime(settings, plugins), settings, plugins)
    settings = settings.model_copy(update={"no_auth": True})
    create_app(Runtime(settings, plugins), settings, plugins)


def test_the_key_of_the_settings_opens_everything_beside_named_ones(start: StartServer) -> None:
    with start(api_key="own") as live:
        doors = Doors(live)
        doors.make("bob")
        assert live.get("/api/ps", headers={"x-api-key": "own"}).status == 200
        assert live.get("/api/models", headers={"x-api-key": doors.secrets["bob"]}).status == 200
        assert live.get("/api/models").status == 401


def test_no_auth_asks_for_none(start: StartServer) -> None:
    with start(api_key="own", no_auth=True) as live:
        Doors(live).make("bob")
        assert live.get("/api/ps").status == 200


def test_a_key_is_never_taken_from_the_query(doors: Doors) -> None:
    secret = doors.make("ops", "manage")
    for name in ("key", "api_key", "token", "access_token", "authorization", "x-api-key"):
        assert doors.live.get(f"/api/ps?{name}={secret}").status == 401


OPEN_TO_CHAT = {
    "POST /api/chat", "GET /api/chat", "POST /api/generate", "POST /api/embeddings", "GET /api/models",
    "GET /api/models/{name}", "GET /api/sessions", "GET /api/sessions/{session_id}",
    "DELETE /api/sessions/{session_id}", "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings",
    "GET /v1/models", "GET /v1/models/{model}",
}  # fmt: skip
MANAGE = {
    "POST /api/models/{name}/load", "POST /api/models/{name}/unload", "GET /api/ps", "GET /metrics", "GET /echo/ping",
}  # fmt: skip


def operations(live: LiveServer) -> set[str]:
    return {f"{method.upper()} {path}" for path, item in live.app.openapi()["paths"].items() for method in item}


def test_a_key_for_chat_opens_what_the_table_says_and_nothing_else(doors: Doors) -> None:
    doors.make("bob")
    doors.make("ops", "manage")
    there = operations(doors.live)
    assert there >= OPEN_TO_CHAT | MANAGE
    for operation in sorted(there - {"GET /health"}):
        method, path = operation.split()
        path = re.sub(r"{[^}]+}", "echo", path)
        refused = doors("bob", method, path)
        if operation in OPEN_TO_CHAT:
            assert refused.status not in (401, 403), operation
        elif operation in MANAGE:
            assert (refused.status, refused.code) == (403, "scope_missing"), operation
        else:
            assert (refused.status == 403) == (scope_for(method, path) == "manage"), operation
        assert doors("ops", method, path).status not in (401, 403), operation
    assert doors("bob", "GET", "/nope").status == 403
    assert doors("bob", "GET", "/docs").status == doors("bob", "GET", "/openapi.json").status == 200


def test_the_table_of_scopes_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/SECURITY.md").read_text(encoding="utf-8")
    table = text[text.index("| `chat`") : text.index("| `manage`")]
    for operation in OPEN_TO_CHAT:
        path = operation.split()[1]
        assert any(
            re.fullmatch(re.escape(prefix).replace(r"\*", ".*"), path) for prefix in re.findall(r"`(/[^`]*)`", table)
        ), operation


def shape_of(path: str, body: Any) -> None:
    """Check that a refusal looks as the API at ``path`` tells it."""
    if path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error", "request_id"} and body["error"].keys() == {"type", "message"}
        assert body["error"]["type"] == "authentication_error"
    elif path.startswith("/v1/"):
        assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["code"] == "invalid_api_key"
    elif path.startswith("/ollama"):
        assert body.keys() == {"error"} and isinstance(body["error"], str)
    else:
        assert body.keys() == {"error"} and body["error"]["code"] == "unauthorized"


def test_without_a_key_every_route_says_so_in_its_own_shape(doors: Doors) -> None:
    doors.make("bob")
    for operation in sorted(operations(doors.live) - {"GET /health"}):
        method, path = operation.split()
        path = re.sub(r"{[^}]+}", "echo", path)
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer "}, {"authorization": "Basic Ym9iOng="}):
            answer = doors.live.request(method, path, headers=headers)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", operation
            shape_of(path, answer.json)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/models/a/load", "manage"), ("DELETE", "/api/models/a", "manage"),
        ("POST", "/api/models", "manage"),
        ("DELETE", "/v1/models/a", "manage"), ("POST", "/v1/models/load", "manage"), ("GET", "/v1/models", "chat"),
        ("HEAD", "/api/models/a", "chat"), ("POST", "/v1/responses", "chat"), ("POST", "/v1/messages", "chat"),
        ("POST", "/ollama/api/chat", "chat"), ("GET", "/ollama/api/tags", "chat"), ("GET", "/ollama/api/ps", "manage"),
        ("POST", "/ollama/api/pull", "manage"), ("DELETE", "/ollama/api/delete", "manage"),
        ("POST", "/api/pull", "manage"),
        ("POST", "/ollama/api/copy", "manage"), ("GET", "/metrics", "manage"), ("GET", "/api/chat/", "manage"),
        ("BREW", "/api/chat", "manage"), ("GET", "/API/CHAT", "manage"), ("GET", "//api/chat", "manage"),
    ],
)  # fmt: skip
def test_scopes(method: str, path: str, scope: str) -> None:
    assert scope_for(method, path) == scope


def test_a_key_for_chat_cant_say_how_long_a_model_stays(doors: Doors) -> None:
    doors.make("bob")
    doors.make("ops", "manage")
    for path, body in (("/api/chat", CHAT), ("/api/generate", {"model": "echo", "prompt": "a", "stream": False})):
        answer = doors("bob", "POST", path, body | {"keep_alive": 0})
        assert (answer.status, answer.code) == (403, "scope_missing") and "keep_alive" in answer.message
        assert doors("bob", "POST", path, body | {"keep_alive": None}).status == 200
        assert doors("ops", "POST", path, body | {"keep_alive": "5m"}).status == 200


def test_a_key_sees_the_sessions_that_it_made(doors: Doors) -> None:
    doors.make("bob")
    doors.make("bobby")
    doors.make("ops", "manage")
    assert doors.chat("bob", "the heron is mine", session_id="ada").json["session_id"] == "ada"
    assert doors.chat("bobby", "the heron is blue", session_id="ada").status == 200
    for name, text in (("bob", "the heron is mine"), ("bobby", "the heron is blue")):
        (entry,) = doors(name, "GET", "/api/sessions").json["sessions"]
        assert (entry["id"], entry["title"]) == ("ada", text)
        (found,) = doors(name, "GET", "/api/sessions?search=heron").json["sessions"]
        assert found["id"] == "ada"
        messages = doors(name, "GET", "/api/sessions/ada").json["messages"]
        assert [message["content"] for message in messages] == [text, text]
    for path in ("key.bob.ada", "key.bobby.ada", "key.bobby.key.bob.ada", "nope"):
        answer = doors("bobby", "GET", f"/api/sessions/{path}")
        assert (answer.status, answer.code) == (404, "session_not_found") and "key.bobby." not in answer.message
    everything = {entry["id"] for entry in doors("ops", "GET", "/api/sessions").json["sessions"]}
    assert everything == {"key.bob.ada", "key.bobby.ada"}
    assert doors("bobby", "DELETE", "/api/sessions/ada").status == 200
    assert doors("bobby", "GET", "/api/sessions").json["sessions"] == []
    assert doors("bob", "GET", "/api/sessions/ada").status == 200
    assert doors("ops", "GET", "/api/sessions/key.bob.ada").status == 200
    doors.chat("bob", "and white", session_id="ada")
    assert len(doors("bob", "GET", "/api/sessions/ada").json["messages"]) == 4, "its own session goes on"


def test_a_stored_response_is_its_keys_own(doors: Doors) -> None:
    doors.make("bob")
    doors.make("eve")
    made = doors("bob", "POST", "/v1/responses", {"model": "echo", "input": "the heron is mine"})
    assert made.status == 200
    path = f"/v1/responses/{made.json['id']}"
    assert doors("bob", "GET", path).json["id"] == made.json["id"]
    assert doors("eve", "GET", path).status == doors("eve", "DELETE", path).status == 404
    body = {"model": "echo", "input": "what did I say?", "previous_response_id": made.json["id"]}
    assert doors("eve", "POST", "/v1/responses", body).status == 404
    second = doors("bob", "POST", "/v1/responses", body)
    assert second.status == 200
    assert doors("bob", "DELETE", f"/v1/responses/{second.json['id']}").status == 200
    assert doors("bob", "DELETE", path).status == 200 and doors("bob", "GET", path).status == 404


def test_many_sessions_of_others_dont_hide_ones_own(doors: Doors) -> None:
    doors.make("bob")
    doors.make("ops", "manage")
    for number in range(3):
        doors.chat("bob", f"heron {number}", session_id=f"b{number}")
    for number in range(30):
        doors.chat("ops", f"heron {number} of others", session_id=f"o{number}")
    assert [e["id"] for e in doors("bob", "GET", "/api/sessions?limit=2").json["sessions"]] == ["b2", "b1"]
    assert [e["id"] for e in doors("bob", "GET", "/api/sessions?limit=2&offset=2").json["sessions"]] == ["b0"]
    assert len(doors("bob", "GET", "/api/sessions?limit=2&search=heron").json["sessions"]) == 2
    assert len(doors("bob", "GET", "/api/sessions?search=heron").json["sessions"]) == 3


def test_an_id_that_gets_too_long_is_refused(doors: Doors) -> None:
    doors.make("bob")
    answer = doors.chat("bob", session_id="s" * 128)
    assert (answer.status, answer.code) == (400, "invalid_request") and "at most 120 characters" in answer.message
    assert doors.chat("bob", session_id="s" * 120).status == 200


def _names(tree: ast.AST) -> str:
    return "".join(f"{ast.unparse(node)}\n" for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def test_everything_of_a_runtime_that_names_sessions_goes_through_its_store() -> None:
    """A method that takes a session id and isn't known here might get around the owner's view."""
    named = {
        name for name, method in inspect.getmembers(Runtime, inspect.isfunction)
        if "session_id" in inspect.signature(method).parameters
    }  # fmt: skip
    assert named <= {"chat", "_plan", "_session_lock"}
    (cls,) = ast.parse(inspect.getsource(Runtime)).body
    assert isinstance(cls, ast.ClassDef)
    using = {
        part.name for part in cls.body if isinstance(part, ast.AsyncFunctionDef) and "self._store\n" in _names(part)
    }
    assert using == {"close", "sessions"}
    assert OwnedRuntime.sessions is not Runtime.sessions and OwnedRuntime._session_lock is not Runtime._session_lock


def test_requests_a_minute_by_key(doors: Doors) -> None:
    doors.make("bob", requests_per_minute=3)
    doors.make("eve", requests_per_minute=3)
    assert [doors("bob", "GET", "/api/models").status for _ in range(3)] == [200] * 3
    answer = doors("bob", "GET", "/api/models")
    assert (answer.status, answer.code) == (429, "rate_limited")
    wait = int(answer.headers["retry-after"])
    assert 1 <= wait <= 20 and answer.json["error"]["data"] == {"limit": 3, "used": 3, "retry_after": wait}
    assert "this key may use 3 requests a minute, and has used 3" in answer.message
    assert doors("bob", "GET", "/health").status == 200
    assert doors("eve", "GET", "/api/models").status == 200


def test_tokens_a_minute_by_key(doors: Doors) -> None:
    doors.make("bob", tokens_per_minute=30)
    assert doors.chat("bob", " ".join("abcdefghijklmnopqrst")).json["usage"]["total_tokens"] > 30
    answer = doors.chat("bob")
    assert (answer.status, answer.code) == (429, "quota_exceeded")
    assert answer.json["error"]["data"]["limit"] == 30 and answer.json["error"]["data"]["used"] > 30
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    stream = doors("bob", "GET", "/api/chat?model=echo&message=hi", accept="text/event-stream")
    assert stream.status == 429
    assert doors("bob", "GET", "/api/models").status == 200, "what costs no tokens is open"
    openai = doors("bob", "POST", "/v1/chat/completions", {"model": "echo", "messages": [HELLO]})
    assert openai.status == 429 and openai.json["error"]["type"] == "rate_limit_error"


def test_tokens_a_day_by_key_outlive_the_server(home: Path, tmp_path: Path) -> None:
    with live_server(home, data_dir=tmp_path) as live:
        doors = Doors(live)
        doors.make("bob", tokens_per_day=20)
        doors.make("eve")
        used = doors.chat("bob", "one two three").json["usage"]["total_tokens"]
        used += doors.chat("bob", " ".join("abcdefghijklmnopqrst")).json["usage"]["total_tokens"]
        answer = doors.chat("bob")
        assert (answer.status, answer.code) == (429, "quota_exceeded")
        assert answer.json["error"]["data"]["used"] == used and "20 tokens a day" in answer.message
        assert 1 <= int(answer.headers["retry-after"]) <= 86400
        assert doors.chat("eve").status == 200
        eventually(lambda: DayUse(tmp_path).read(today()).keys() == {"bob", "eve"}, 60)
    assert DayUse(tmp_path).read(today())["bob"] == used
    with live_server(home, data_dir=tmp_path) as live:
        again = Doors(live)
        again.secrets = doors.secrets
        assert again.chat("bob").status == 429 and again.chat("eve").status == 200


def test_a_reply_that_is_cut_off_costs_too(doors: Doors) -> None:
    secret = doors.make("bob", tokens_per_minute=600)
    body = json.dumps({"model": "slow", "messages": [{"role": "user", "content": "a b c d e f g h i j k l"}]}).encode()
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Api-Key: %s\r\n"
    with doors.live.connect() as connection:
        connection.sendall(head % secret.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        read_until(connection, rb'"token":"? ?c')
    eventually(lambda: DayUse(doors.file.path.parent).read(today()).get("bob", 0) >= 3, 60)


def test_embeddings_and_completions_cost_too(doors: Doors) -> None:
    doors.make("bob")
    doors("bob", "POST", "/v1/completions", {"model": "echo", "prompt": "a b c", "max_tokens": 3})
    eventually(lambda: DayUse(doors.file.path.parent).read(today()).get("bob", 0) >= 6, 60)


def test_a_limit_of_a_dialect_has_its_shape(doors: Doors) -> None:
    from myllm_server.errors import HttpError

    status, body = error_shape(HttpError(429, "quota_exceeded", "no"), "id")
    assert status == 429 and body["error"]["type"] == "rate_limit_error"


def test_waiting_clients_are_told_apart_by_key(doors: Doors) -> None:
    from starlette.requests import Request

    from myllm_core.keys import ApiKey
    from myllm_server.keys import OWNER
    from myllm_server.state import client_of

    def client(key: ApiKey, host: str) -> str:
        return client_of(Request({"type": "http", "state": {"key": key}, "client": (host, 1), "headers": []}))

    bob, eve = ApiKey(name="bob"), ApiKey(name="eve")
    assert client(bob, "10.0.0.1") == client(bob, "10.0.0.2") != client(eve, "10.0.0.1")
    assert client(OWNER, "10.0.0.1") != client(OWNER, "10.0.0.2")


def test_keys_arent_logged(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        secret = doors.make("bob")
        doors.chat("bob")
        doors("bob", "POST", "/api/models/echo/load")
        doors.live.get("/api/ps", headers={"x-api-key": secret + "x"})
        doors.file.revoke("bob")
        doors.chat("bob")
    assert secret not in caplog.text and doors.secrets["bob"][6:30] not in caplog.text


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == "myllm.audit"]  # type: ignore[attr-defined]


def test_a_pull_that_fails_in_its_middle_is_an_error_in_its_line(
    doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    doors.make("ops", "manage")
    with caplog.at_level(logging.INFO):
        answer = doors("ops", "POST", "/ollama/api/pull", {"model": "hf.co/nobody/nothing"})
        eventually(lambda: any("status" in line for line in audit_lines(caplog)), 60)
    (line,) = [line for line in audit_lines(caplog) if "status" in line]
    assert (line["action"], line["model"]) == ("POST /ollama/api/pull", "hf.co/nobody/nothing")
    assert line["outcome"] == "error" and (answer.status >= 400 or line["code"])


def test_management_calls_leave_a_line_each(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        doors.make("bob")
        doors.make("ops", "manage")
        doors("ops", "GET", "/api/models")
        doors("ops", "POST", "/api/models/echo/load", {"keep_alive": "5m"})
        doors("ops", "POST", "/api/models/nope/unload")
        doors("bob", "POST", "/api/models/echo/unload")
        doors.live.post("/api/models/echo/load")
        doors.chat("bob", session_id="s")
        gone = doors("bob", "DELETE", "/api/sessions/s")
        doors.file.revoke("bob")
        doors("ops", "GET", "/api/ps")
        eventually(lambda: len(audit_lines(caplog)) >= 8, 60)
    lines = audit_lines(caplog)
    assert [(line["action"], line["key"]) for line in lines if "status" not in line] == [
        ("create key", "bob"), ("create key", "ops"), ("revoke key", "bob"),
    ]  # fmt: skip
    calls = [line for line in lines if "status" in line]
    assert [(line["key"], line["action"], line["model"], line["outcome"], line["status"]) for line in calls] == [
        ("ops", "POST /api/models/echo/load", "echo", "ok", 200),
        ("ops", "POST /api/models/nope/unload", "nope", "error", 404),
        ("bob", "POST /api/models/echo/unload", "", "error", 403),
        ("-", "POST /api/models/echo/load", "", "error", 401),
        ("bob", "DELETE /api/sessions/s", "s", "ok", 200),
    ]
    assert calls[-1]["request_id"] == gone.headers["x-request-id"] and calls[-1]["client"] == "127.0.0.1"
