"""Limits: each at its edge, with its own status, and saying which setting it comes from."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_server.limits import Buckets, client_name
from support.server import LiveServer, StartServer, install_echo, parse_answer, read_all

HELLO = {"role": "user", "content": "hi"}


def nested(depth: int) -> Any:
    """An object so many levels deep."""
    value: Any = 1
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"x": value}


def test_messages_up_to_the_limit(start: StartServer) -> None:
    with start(max_messages=3) as server:
        assert server.post("/api/chat", {"model": "echo", "messages": [HELLO] * 3, "stream": False}).status == 200
        for path in ("/api/chat", "/v1/chat/completions"):
            answer = server.post(path, {"model": "echo", "messages": [HELLO] * 4})
            assert answer.status in (400, 422), path
            assert "messages: 4 are too many, at most 3 are taken (max_messages)" in answer.body.decode()
        answer = server.post("/api/chat", {"model": "echo", "messages": [HELLO] * 4})
        assert (answer.status, answer.code) == (422, "invalid_request")
        assert answer.json["error"]["data"] == {"max_messages": 3}
        answer = server.post("/v1/responses", {"model": "echo", "input": [HELLO] * 4})
        assert (answer.status, answer.json["error"]["param"]) == (400, "input")
        assert server.post("/v1/embeddings", {"model": "echo", "input": ["hi"] * 4}).status == 200
        assert server.post("/api/embeddings", {"model": "echo", "input": ["hi"] * 4}).status == 200


@pytest.mark.parametrize("depth", [8, 64, 500])
def test_nesting_up_to_the_limit(start: StartServer, depth: int) -> None:
    with start(max_json_depth=depth) as server:
        answer = server.post("/api/chat", nested(depth))
        assert answer.status == 422, "it is only the field that is unknown"
        answer = server.post("/api/chat", nested(depth + 1))
        assert (answer.status, answer.code) == (400, "invalid_json")
        assert f"deeper than {depth} levels (max_json_depth)" in answer.message


def test_a_wide_body_is_not_deep(live: LiveServer) -> None:
    content = json.dumps([{"a": [1]}] * 1000)
    assert live.chat(content).json["message"]["content"] == content
    began = time.process_time()
    raw = b'{"model": "echo", "messages": [' + b"[]," * 1_000_000 + b"[]]}"
    assert live.post("/api/chat", raw=raw).status == 422
    assert time.process_time() - began < 10


def test_no_reply_is_longer_than_max_tokens(start: StartServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    install_echo(models)
    install_echo(models, "short:latest", options={"max_tokens": 2})
    install_echo(models, "long:latest", options={"max_tokens": 50})
    words = " ".join("abcdefghij")
    with start(models_dir=models, max_tokens=5) as server:

        def written(**more: Any) -> int:
            return int(server.chat(words, **more).json["usage"]["completion_tokens"])

        assert written(options={"max_tokens": 5}) == 5
        assert written(options={"max_tokens": 4}) == 4
        assert written() == 5
        assert written(model="short") == 2
        assert written(model="long") == 5
        for path, body in (
            ("/api/chat", {"messages": [HELLO], "options": {"max_tokens": 6}}),
            ("/api/generate", {"prompt": "hi", "options": {"max_tokens": 6}}),
        ):
            answer = server.post(path, {"model": "echo", **body})
            assert (answer.status, answer.code) == (422, "invalid_option")
            assert "max_tokens: at most 5 " in answer.message and answer.json["error"]["data"] == {"max_tokens": 5}


def test_a_client_may_ask_so_often_a_minute(start: StartServer) -> None:
    with start(rate_limit=5, cors_origins=["http://page.example"]) as server:
        assert [server.get("/api/ps").status for _ in range(5)] == [200] * 5
        answer = server.get("/api/ps", headers={"origin": "http://page.example"})
        assert (answer.status, answer.code) == (429, "rate_limited")
        wait = int(answer.headers["retry-after"])
        assert 1 <= wait <= 12 and answer.json["error"]["data"] == {"retry_after": wait}
        assert "(rate_limit)" in answer.message
        assert answer.headers["access-control-allow-origin"] == "http://page.example"
        assert server.post("/v1/chat/completions", {"model": "echo", "messages": [HELLO]}).status == 429
        assert server.get("/nope").status == 429
        assert server.get("/health").status == 200 and server.get("/metrics").status == 200
        assert server.get("/api/ps", headers={"origin": "http://evil.example"}).status == 403


def test_a_body_that_is_refused_by_rate_doesnt_lose_the_answer(start: StartServer) -> None:
    with start(rate_limit=1) as server:
        server.get("/api/ps")
        assert server.post("/api/chat", raw=b" " * 8_000_000).status == 429


def test_no_rate_limit_by_default(live: LiveServer) -> None:
    assert {live.get("/api/ps").status for _ in range(100)} == {200}


@settings(deadline=None)
@given(per_minute=st.integers(1, 600), gaps=st.lists(st.floats(0, 100) | st.sampled_from([0.0, 60.0]), max_size=60))
def test_a_bucket_lets_through_what_it_says_and_who_waits_gets_in(per_minute: int, gaps: list[float]) -> None:
    buckets, now, came = Buckets(per_minute), 1000.0, []
    for gap in gaps:
        now += gap
        wait = buckets.take("me", now)
        if wait:
            assert 0 < wait <= 60 / per_minute + 1e-6
            now += wait + 1e-6
            assert buckets.take("me", now) == 0
        came.append(now)
        assert sum(now - one < 60 for one in came) <= 2 * per_minute
    for _ in range(per_minute):
        assert buckets.take("another", now) == 0
    assert buckets.take("another", now) > 0


def test_the_clients_that_are_known_are_bounded() -> None:
    buckets = Buckets(1)
    for number in range(20_000):
        assert buckets.take(f"client {number}", 0.0) == 0
    assert len(buckets._left) <= 10_000
    assert buckets.take("client 19999", 0.0) > 0


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::1", "::2", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("a socket", "a socket", True),
    ],
)
def test_whom_a_request_counts_for(one: str, another: str, same: bool) -> None:
    assert (client_name({"client": (one, 1)}) == client_name({"client": (another, 2)})) is same
    assert client_name({"client": None}) == client_name({}) == ""


def test_a_head_or_a_body_in_time_is_answered_and_one_past_it_isnt(start: StartServer) -> None:
    body = json.dumps({"model": "echo", "messages": [HELLO], "stream": False}).encode()
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with start(read_timeout="1s") as server:
        for parts, status in (
            ((head[:20], head[20:] + body), 200),
            ((head + body[:5], body[5:]), 200),
            ((head[:20],), 408),
            ((head + body[:5],), 408),
        ):
            with server.connect() as connection:
                began = time.monotonic()
                connection.sendall(parts[0])
                time.sleep(0.5)
                for part in parts[1:]:
                    connection.sendall(part)
                answer = parse_answer(read_all(connection))
                assert answer.status == status
                assert status == 200 or 0.9 < time.monotonic() - began < 5  # it lingers for 2 s, reading


ROUTES = """
    from fastapi import APIRouter, HTTPException
    from myllm_core import hookimpl

    router = APIRouter()

    @router.get("/busy/{status}")
    def busy(status: int) -> None:
        raise HTTPException(status, "not now", {"Retry-After": "7"} if status == 429 else None)

    @hookimpl
    def myllm_routes():
        return [router]
"""


def test_every_503_and_429_says_when_to_come_back(
    start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "busy-1.0.dist-info").mkdir(parents=True)
    (site / "busy_plugin.py").write_text(textwrap.dedent(ROUTES))
    (site / "busy-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: busy\nVersion: 1.0\n")
    (site / "busy-1.0.dist-info/entry_points.txt").write_text("[myllm]\nbusy = busy_plugin\n")
    monkeypatch.syspath_prepend(str(site))
    with start() as server:
        assert server.get("/busy/503").headers["retry-after"] == "1"
        assert server.get("/busy/429").headers["retry-after"] == "7"
        assert "retry-after" not in server.get("/busy/404").headers
        server.gate.closed = True
        assert int(server.get("/api/ps").headers["retry-after"]) >= 1
        assert int(server.get("/health").headers["retry-after"]) >= 1
