"""How long models stay loaded, by request; what `GET /api/ps` says; HEAD."""

from __future__ import annotations

from typing import Any

import pytest

from support.server import LiveServer, StartServer, eventually


def loaded(server: LiveServer) -> list[dict[str, Any]]:
    return list(server.get("/api/ps").json["models"])


CALLS = [
    ("/api/chat", {"messages": [{"role": "user", "content": "hi"}], "stream": False}),
    ("/api/chat", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
    ("/api/generate", {"prompt": "hi", "stream": False}),
    ("/api/embeddings", {"input": "hi"}),
    ("/api/models/echo/load", {}),
]


@pytest.mark.parametrize(("path", "body"), CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_keep_alive_of_a_request(start: StartServer, path: str, body: dict[str, Any]) -> None:
    body = body | ({} if "load" in path else {"model": "echo"})
    with start(keep_alive="5m") as server:
        for given, least, most in (("10m", 590, 600), (120, 110, 120), (0.5e2, 40, 50), ("1h", 3590, 3600)):
            assert server.post(path, body | {"keep_alive": given}).status == 200
            eventually(lambda: loaded(server)[0]["expires_in"])
            assert least < loaded(server)[0]["expires_in"] <= most
        for given in ("forever", -1, "-1"):
            server.post(path, body | {"keep_alive": given})
            eventually(lambda: loaded(server)[0]["running"] == 0)
            assert loaded(server)[0]["expires_in"] is None
        server.post(path, body | {"keep_alive": None})
        eventually(lambda: loaded(server)[0]["expires_in"])
        assert 290 < loaded(server)[0]["expires_in"] <= 300
        for given in (0, "0", "0s"):
            server.post(path, body | {"keep_alive": given})
            eventually(lambda: loaded(server) == [])


@pytest.mark.parametrize(
    "value", [True, False, [], {}, "", "soon", "5 minutes", "x" * 100_000, "1e5", "5m5m", "٥m", "1" * 31]
)
@pytest.mark.parametrize(("path", "body"), CALLS[1:], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_time(live: LiveServer, path: str, body: dict[str, Any], value: object) -> None:
    answer = live.post(path, body | ({} if "load" in path else {"model": "echo"}) | {"keep_alive": value})
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert answer.message.startswith("keep_alive: ") and "forever" in answer.message and len(answer.message) < 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_no_time(live: LiveServer, number: str) -> None:
    raw = f'{{"model": "echo", "prompt": "hi", "keep_alive": {number}}}'.encode()
    assert live.post("/api/generate", raw=raw).status == 422


def test_what_a_loaded_model_says_of_itself(start: StartServer) -> None:
    with start(isolation="process") as server:
        answer = server.post("/api/models/slow/load", {"keep_alive": "10m"}).json
        assert answer["status"] == "loaded" and 590 < answer["expires_in"] <= 600
        (idle,) = loaded(server)
        assert idle.keys() == answer.keys() - {"status"}
        assert idle["name"] == "slow:latest" and idle["engine"] == "echo" and idle["context_size"] == 4096
        assert idle["pid"] == answer["pid"] > 0 and idle["memory"] > 10_000_000
        assert (idle["running"], idle["queued"]) == (0, 0) and idle["loaded_at"].startswith("20")
        with server.send_chat("one two three four five six seven eight", model="slow"):
            eventually(lambda: loaded(server)[0]["running"] == 1)
            assert loaded(server)[0]["expires_in"] is None
        assert server.post("/api/models/slow/unload").json == {"name": "slow:latest", "status": "available"}
        assert loaded(server) == []


def test_head_is_get_without_the_body(live: LiveServer) -> None:
    for path in ("/health", "/api/models", "/api/models/echo", "/api/ps", "/metrics", "/echo/ping", "/docs"):
        got, head = live.get(path), live.request("HEAD", path)
        assert (head.status, head.body) == (200, b""), path
        assert head.headers["content-type"] == got.headers["content-type"] and head.headers["x-request-id"]
    raw = live.raw(b"HEAD /api/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert raw.body == b"" and int(raw.headers["content-length"]) > 10
    assert live.request("HEAD", "/nope").status == 404
    assert live.request("HEAD", "/api/models/nope").status == 404
    assert live.request("HEAD", "/api/generate").status == 405


def test_head_generates_nothing(live: LiveServer) -> None:
    before = live.get("/api/sessions").json
    path = "/api/chat?model=echo&message=hi"
    assert live.request("HEAD", path, headers={"accept": "text/event-stream"}).status == 405
    assert live.get("/api/sessions").json == before
