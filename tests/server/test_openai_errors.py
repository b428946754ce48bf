"""Every refusal under `/v1` has OpenAI's shape, whoever refuses; elsewhere it keeps the native one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.server import Answer, LiveServer, StartServer, read_until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}


def error_of(answer: Answer) -> dict[str, Any]:
    """The error, after checking its shape."""
    body = answer.json
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"] and "\n" not in body["error"]["message"]
    assert answer.headers["x-request-id"] and answer.headers["content-type"] == "application/json"
    return dict(body["error"])


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("GET", "/v1/nope", {}, 404, "not_found"),
        ("GET", "/v1", {}, 404, "not_found"),
        ("GET", "/v1/models/nope", {}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"body": CHAT | {"model": "gpt-4o"}}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"body": CHAT | {"model": "owner/Name"}}, 404, "model_not_found"),
        ("POST", "/v1/embeddings", {"body": {"model": "nope", "input": "x"}}, 404, "model_not_found"),
        ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", {}, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", {"raw": b"{"}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"raw": b"\xff"}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"raw": b'"\\ud800"'}, 400, "invalid_request"),
        ("POST", "/v1/chat/completions", {"raw": b"[]"}, 400, "invalid_request"),
        ("POST", "/v1/chat/completions", {}, 400, "invalid_request"),
        ("POST", "/v1/chat/completions", {"body": CHAT, "headers": {"content-type": "text/plain"}}, 415,
         "unsupported_media_type"),
        ("GET", "/v1/models", {"headers": {"host": "evil.example"}}, 403, "host_not_allowed"),
        ("GET", "/v1/models", {"headers": {"origin": "http://evil.example"}}, 403, "origin_not_allowed"),
    ],
)  # fmt: skip
def test_refusals(live: LiveServer, method: str, path: str, more: dict[str, Any], status: int, code: str) -> None:
    answer = live.request(method, path, **more)
    error = error_of(answer)
    assert (answer.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert error["param"] == ("model" if code == "model_not_found" else None)


def test_the_key(start: StartServer) -> None:
    with start(api_key="k3y") as server:
        for headers, said in (({}, "wants a key"), ({"authorization": "Bearer wrong"}, "mistyped or revoked")):
            answer = server.post("/v1/chat/completions", CHAT, headers=headers)
            error = error_of(answer)
            assert (answer.status, error["code"]) == (401, "invalid_api_key") and said in error["message"]
            assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer k3y"}, {"x-api-key": "k3y"}):
            assert server.post("/v1/chat/completions", CHAT, headers=headers).status == 200


def test_limits(start: StartServer) -> None:
    with start(max_body_bytes=1024, max_requests=1) as server:
        answer = server.post("/v1/chat/completions", CHAT | {"x": "y" * 2000})
        assert (answer.status, error_of(answer)["code"]) == (413, "body_too_large")
        with server.send_chat("a b c d e f g h i j k l m n o p", model="slow") as running:
            read_until(running, rb'"token":')
            answer = server.post("/v1/chat/completions", CHAT)
            error = error_of(answer)
            assert (answer.status, error["code"], error["type"]) == (503, "overloaded", "server_error")
            assert answer.headers["retry-after"] == "1"


def test_too_many_requests(start: StartServer) -> None:
    with start(rate_limit=1) as server:
        answers = [server.get("/v1/models") for _ in range(2)]
        error = error_of(answers[1])
        assert [answer.status for answer in answers] == [200, 429]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(answers[1].headers["retry-after"]) > 1


def test_a_server_that_stops_ends_streams_with_an_error(start: StartServer) -> None:
    words = " ".join(["w"] * 400)
    body = json.dumps({"model": "slow", "messages": [{"role": "user", "content": words}], "stream": True}).encode()
    with start(shutdown_grace=0.1) as server, server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        read_until(connection, rb'"content":" w"')
        server.stop()
        seen = read_until(connection, rb'data: \{"error":[^\n]*\n\n')
        assert b'"type":"server_error","param":null,"code":"stopping"' in seen and b"[DONE]" not in seen


def test_other_paths_keep_the_native_shape(live: LiveServer) -> None:
    for path in ("/api/nope", "/nope", "/v1x/models", "/v2/models", "/api/v1/models"):
        assert live.get(path).code == "not_found"
