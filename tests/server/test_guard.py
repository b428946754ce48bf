"""Who may ask: host names, origins, keys; on every route and every method."""

from __future__ import annotations

import ast
import hmac
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import myllm_server
from myllm_core.errors import ConfigError
from myllm_core.keys import hash_key
from myllm_core.settings import Settings
from myllm_server import guard, keys
from support.server import Answer, LiveServer, StartServer

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "MYLLM")
OTHERS = ("/docs/oauth2-redirect", "/static-offline-docs/swagger-ui.css", "/nope")
ORIGIN = "http://chat.example:3000"
KEY = "s3cret-Kéy"


def send(live: LiveServer, method: str, path: str, *lines: str, body: str = "") -> Answer:
    head = [f"{method} {path} HTTP/1.1", *lines, "Connection: close"]
    return live.raw(("\r\n".join(head) + "\r\n\r\n" + body).encode("latin-1"))


def paths_of(live: LiveServer) -> list[str]:
    """A path for each route that the app has, in the document or not, and some for which there is none."""
    routes = sorted(set(walk(live.app.routes)))
    assert set(live.app.openapi()["paths"]) | {"/", "/docs", "/openapi.json", "/echo/ping"} <= set(routes)
    named = [re.sub(r"{(name|model)(:path)?}", "echo", path) for path in routes]
    return [*(re.sub(r"{[^}]+}", "s", path) for path in named), *OTHERS]


def walk(routes: Iterable[Any]) -> Iterator[str]:
    """The paths of routes, and of the routers among them."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield re.sub(r":\w+}", "}", route.path)
        else:
            yield from walk(inner.routes)


def test_a_foreign_host_is_refused_everywhere(live: LiveServer) -> None:
    paths = paths_of(live)
    assert len(paths) > 25
    for path in paths:
        for method in METHODS:
            answer = send(live, method, path, "Host: evil.example")
            assert answer.status == 403, (method, path)
            assert method == "HEAD" or b"add it to allowed_hosts" in answer.body


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost", "[::2]", "127.0.0.2", "0.0.0.0",
     "2130706433", "localhost.", "10.0.0.1:8000", "0x7f.1", "ui.local"],
)  # fmt: skip
def test_names_that_only_look_like_ours(live: LiveServer, host: str) -> None:
    assert send(live, "GET", "/health", f"Host: {host}").status == 403


@pytest.mark.parametrize(
    "host",
    ["localhost/x", "localhost?x", "localhost#x", "localhost,evil.example", "", " ", "localhost:port", "localhost:",
     "localhost:123456", "user@localhost", "[::1", "::1", "local host", "localhost:80:80"],
)  # fmt: skip
def test_a_malformed_host_is_400(live: LiveServer, host: str) -> None:
    assert send(live, "GET", "/health", f"Host: {host}").status == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
def test_loopback_names_are_ours(live: LiveServer, host: str) -> None:
    assert send(live, "GET", "/health", f"Host: {host}").status == 200


def test_configured_names_are_ours(start: StartServer) -> None:
    with start(allowed_hosts=["ai.example", "[fd00::1]"], host="myhost.example") as server:
        for host in ("ai.example:80", "myhost.example", "[fd00::1]:8000"):
            assert send(server, "GET", "/health", f"Host: {host}").status == 200
        assert send(server, "GET", "/health", "Host: x.ai.example").status == 403


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\n{}\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\nX-A: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX A: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n folded\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_ambiguous_http_is_400_and_the_connection_is_closed(live: LiveServer, head: bytes) -> None:
    answer = live.raw(head)
    assert answer.status == 400 and answer.code
    assert answer.headers["connection"] == "close" or b"HTTP/1.0" in head or b"Length" not in head


def test_a_bare_line_feed_is_found_however_the_head_arrives(live: LiveServer) -> None:
    with live.connect() as connection:
        for part in (b"GET /health HTTP/1.1\r", b"\nHost: localhost", b"\n", b"\r\n"):
            connection.sendall(part)
            connection.settimeout(0.2)
            try:
                reply = connection.recv(1000)
                break
            except TimeoutError:
                continue
        assert reply.startswith(b"HTTP/1.1 400")
    with live.connect() as connection:
        for part in (b"GET /health HTTP/1.1\r", b"\nHost: localhost\r", b"\nConnection: close\r\n\r", b"\n"):
            connection.sendall(part)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_can_send_without_asking_is_no_json(live: LiveServer, kind: str) -> None:
    body = '{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": false}'
    lines = ["Host: localhost", f"Content-Length: {len(body)}", *([f"Content-Type: {kind}"] if kind else [])]
    answer = send(live, "POST", "/api/chat", *lines, body=body)
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert send(live, "POST", "/api/chat", *lines, "Origin: http://evil.example", body=body).status == 403


@pytest.mark.parametrize(
    "origin",
    ["null", "file://", "http://evil.example", f"{ORIGIN}.evil.example", f"{ORIGIN}/", ORIGIN.upper(), "https" +
     ORIGIN[4:], "http://chat.example", "http://chat.example:30000", "http://xchat.example:3000", "*", "",
     "http://localhost:3000", "http://localhost.evil.example"],
)  # fmt: skip
def test_only_configured_origins(start: StartServer, origin: str) -> None:
    with start(cors_origins=[ORIGIN]) as server:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            answer = send(server, method, "/api/sessions/s", "Host: localhost:8000", f"Origin: {origin}")
            assert (answer.status, answer.code) == (403, "origin_not_allowed"), method
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_servers_own_pages_may_ask(live: LiveServer) -> None:
    for origin in ("http://localhost:8000", "https://localhost:8000"):
        assert send(live, "GET", "/api/ps", "Host: localhost:8000", f"Origin: {origin}").status == 200


def test_preflight(start: StartServer, live: LiveServer) -> None:
    asking = (
        "Host: localhost",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: x-stainless-os",
        "Access-Control-Request-Private-Network: true",
    )
    refused = send(live, "OPTIONS", "/api/chat", *asking, f"Origin: {ORIGIN}")
    assert refused.status == 403 and not any(name.startswith("access-control") for name in refused.headers)
    with start(cors_origins=[ORIGIN], api_key="k") as server:
        allowed = send(server, "OPTIONS", "/api/chat", *asking, f"Origin: {ORIGIN}")
        assert allowed.status == 204
        assert allowed.headers["access-control-allow-origin"] == ORIGIN and "origin" in allowed.headers["vary"]
        assert allowed.headers["access-control-allow-headers"] == "x-stainless-os"
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert allowed.headers["access-control-allow-private-network"] == "true"
        plain = send(server, "OPTIONS", "/api/chat", *asking[:2], f"Origin: {ORIGIN}")
        assert not {"access-control-allow-headers", "access-control-allow-private-network"} & plain.headers.keys()


def test_answers_and_errors_can_be_read_by_a_configured_origin(start: StartServer) -> None:
    with start(cors_origins=[ORIGIN]) as server:
        for path, status in (("/api/models", 200), ("/api/models/nope", 404)):
            answer = server.get(path, headers={"origin": ORIGIN, "sec-fetch-site": "cross-site"})
            assert answer.status == status and answer.headers["access-control-allow-origin"] == ORIGIN
        stream = server.get(
            "/api/chat?model=echo&message=hi", headers={"origin": ORIGIN, "accept": "text/event-stream"}
        )
        assert stream.status == 200 and stream.headers["access-control-allow-origin"] == ORIGIN


def test_other_sites_cant_load_anything_but_may_link_here(live: LiveServer) -> None:
    cross = {"sec-fetch-site": "cross-site"}
    for site in ("cross-site", "same-site"):
        for mode in ("no-cors", "cors", "websocket"):
            answer = live.get("/api/models", headers={"sec-fetch-site": site, "sec-fetch-mode": mode})
            assert answer.status == 403
    framed = cross | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert live.get("/docs", headers=framed).status == 403
    assert live.get("/docs", headers=cross | {"sec-fetch-mode": "navigate"}).status == 200
    assert live.post("/api/models/echo/load", headers=cross | {"sec-fetch-mode": "navigate"}).status == 403


@pytest.mark.parametrize("origin", ["*", "null", "chat.example", "http://chat.example/", "http://chat.example/x"])
def test_an_origin_that_is_none_is_a_configuration_error(origin: str) -> None:
    with pytest.raises(ConfigError, match="is no origin; write it"):
        guard.check_origins(Settings(cors_origins=[origin]))


@pytest.fixture(scope="module")
def locked(home: Path) -> object:
    from support.server import live_server

    with live_server(home, api_key=KEY, wrong_keys=0, data_dir=home / "locked") as server:
        yield server


@pytest.mark.parametrize(
    "line",
    [
        "X-A: b",
        f"Authorization: Bearer {KEY}x",
        f"Authorization: Bearer {KEY[:-1]}",
        f"Authorization: Bearer {KEY.lower()}",
        f"Authorization: Bearer {KEY.upper()}",
        f"Authorization: Basic {KEY}",
        f"Authorization: {KEY}",
        "Authorization: Bearer",
        "X-Api-Key: ",
        "Cookie: key=" + KEY,
    ],
)
def test_without_the_key_nothing_but_health_is_open(locked: LiveServer, line: str) -> None:
    for path in paths_of(locked):
        for method in METHODS:
            raw = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{line}\r\n\r\n".encode()
            answer = locked.raw(raw)
            if path == "/health":
                assert answer.status in (200, 405), method
            else:
                assert answer.status == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    ["/health/", "//health", "/health/../api/ps", "/api/ps/../../health", "/health%2f..%2fapi/ps", "/health;/api/ps",
     "/HEALTH", "/api/ps?x=/health", "/api/ps#/health", "http://localhost/api/ps", "/health%00"],
)  # fmt: skip
def test_no_path_gets_around_the_key(locked: LiveServer, path: str) -> None:
    assert send(locked, "GET", path, "Host: localhost").status in (400, 401)


def test_the_key_opens_by_either_header(locked: LiveServer) -> None:
    for line in (f"Authorization: Bearer {KEY}", f"authorization: bEARER  {KEY}", f"x-api-key: {KEY}"):
        raw = f"GET /api/ps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{line}\r\n\r\n".encode()
        assert locked.raw(raw).status == 200


def test_without_the_key_the_body_isnt_read(locked: LiveServer) -> None:
    answer = locked.raw(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{")
    assert (answer.status, answer.code) == (401, "unauthorized")


def test_the_key_is_compared_in_constant_time(locked: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", spy)
    assert locked.get("/api/ps", headers={"x-api-key": "wrong"}).status == 401
    assert seen == [(hash_key(b"wrong").encode(), hash_key(KEY.encode()).encode())]


def test_no_code_decides_by_the_url_or_compares_keys_itself() -> None:
    for file in Path(myllm_server.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("url", "base_url"), f"{file.name}:{node.lineno}"
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                secret = re.search(r"(?<!_)key\b|secret|digest|sha256", ast.unparse(node))
                assert not secret or file.name == "keys.py" and "ANYBODY" in ast.unparse(node), (
                    f"{file.name}:{node.lineno}"
                )


def test_reading_changes_nothing(start: StartServer, tmp_path: Path, home: Path) -> None:
    """No GET but the chat one writes: the stored sessions and the models stay as they are."""

    def state() -> list[tuple[str, int]]:
        return sorted((str(p), p.stat().st_mtime_ns) for p in (home / "models").rglob("*"))

    with start() as server:
        session = server.chat("hello").json["session_id"]
        before = (state(), server.get("/api/sessions").json, server.get("/api/ps").json["models"][0]["loaded_at"])
        for path in paths_of(server):
            if path != "/api/chat":
                assert server.get(path.replace("/s", f"/{session}") if path == "/api/sessions/s" else path).status
        after = (state(), server.get("/api/sessions").json, server.get("/api/ps").json["models"][0]["loaded_at"])
        assert before == after
