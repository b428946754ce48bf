"""Headers that every answer has, whoever gives it, and the policies of the pages."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from myllm_server.headers import SECURITY
from support.server import Answer, LiveServer, StartServer

PLAIN = "default-src 'none'; frame-ancestors 'none'"


def check(answer: Answer) -> None:
    for name, value in SECURITY:
        if name != b"content-security-policy":
            assert answer.headers[name.decode()] == value.decode(), name
    assert answer.headers["x-request-id"]
    kind = answer.headers.get("content-type", "")
    assert (answer.headers["content-security-policy"] == PLAIN) != kind.startswith("text/html")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health"), ("GET", "/api/models"), ("GET", "/nope"), ("DELETE", "/api/chat"), ("POST", "/api/chat"),
     ("GET", "/openapi.json"), ("GET", "/static-offline-docs/swagger-ui.css"), ("GET", "/metrics"), ("GET", "/docs"),
     ("HEAD", "/"), ("GET", "/"), ("OPTIONS", "/api/chat"), ("BREW", "/"), ("GET", "/v1/models"),
     ("GET", "/echo/ping")],
)  # fmt: skip
def test_every_answer_has_them(live: LiveServer, method: str, path: str) -> None:
    check(live.request(method, path))


def test_refusals_and_streams_have_them(start: StartServer) -> None:
    with start(api_key="k", cors_origins=["http://a.example"]) as live:
        check(live.get("/api/models"))
        check(live.get("/api/models", headers={"host": "evil.example"}))
        check(live.raw(b"GET /health HTTP/1.1\nHost: localhost\n\n"))
        check(live.get("/api/chat?model=echo&message=a", headers={"accept": "text/event-stream", "x-api-key": "k"}))
        asking = {"origin": "http://a.example", "access-control-request-method": "POST"}
        check(live.request("OPTIONS", "/api/chat", headers=asking))


def test_answers_differ_by_origin_and_say_so(start: StartServer) -> None:
    with start(cors_origins=["http://a.example"]) as live:
        for headers in ({}, {"origin": "http://a.example"}, {"origin": "http://b.example"}):
            assert live.get("/api/models", headers=headers).headers["vary"] == "origin"


def test_the_chat_page_is_allowed_by_hash_and_nothing_else(start: StartServer) -> None:
    with start(api_key="k") as live:
        html = {"accept": "text/html,*/*"}
        locked, opened = live.get("/", headers=html), live.get("/", headers=html | {"x-api-key": "k"})
        assert (locked.status, opened.status) == (401, 200) and locked.body == opened.body
        assert locked.headers["www-authenticate"] == "Bearer"
        policy = opened.headers["content-security-policy"]
        assert "unsafe" not in policy and "*" not in policy and "http" not in policy
        docs = live.get("/docs", headers=html)
        assert docs.status == 401 and live.get("/docs").code == "unauthorized"
        assert "strict-dynamic" in docs.headers["content-security-policy"] and b"openapi.json" in docs.body
        for tag in (b"script", b"style"):
            (text,) = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), opened.body, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
            assert f"{tag.decode()}-src 'sha256-{digest}'" in policy
        assert live.get("/").code == "unauthorized", "programs get the error as everywhere"
        assert live.post("/", headers=html).code == "unauthorized"
        assert live.request("HEAD", "/", headers=html).status == 401
