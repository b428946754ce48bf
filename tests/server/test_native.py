"""The native API as the manual describes it."""

from __future__ import annotations

import json
import re
import uuid
from contextlib import closing

import pytest
import urllib3

from support.server import LiveServer, StartServer, parse_answer, read_all

GENERATION = {"usage", "finish_reason", "timings", "engine", "model"}


def new_id() -> str:
    return uuid.uuid4().hex


def test_chat_answers_with_one_document(live: LiveServer) -> None:
    answer = live.chat("Why is the sky blue?")
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    body = answer.json
    assert body["message"] == {"role": "assistant", "content": "Why is the sky blue?"}
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10, "cached_tokens": 0}
    assert body["finish_reason"] == "stop" and body["engine"] == "echo"
    assert re.fullmatch(r"[0-9a-f]{32}", body["session_id"])


def test_chat_streams_when_nothing_is_said(live: LiveServer) -> None:
    answer = live.post("/api/chat", {"model": "echo", "messages": [{"role": "user", "content": "Why not now?"}]})
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    *tokens, last = answer.frames
    assert all(frame.keys() == {"token", "done"} and frame["done"] is False for frame in tokens)
    assert "".join(frame["token"] for frame in tokens) == "Why not now?"
    assert last["done"] is True and last["full_text"] == "Why not now?" and last["session_id"]
    assert last.keys() >= GENERATION and last["usage"]["total_tokens"] == 6
    assert answer.body.startswith(b'data: {"token":"Why') and answer.body.endswith(b"}\n\n")


def test_a_streaming_client_in_python(live: LiveServer) -> None:
    """A client as people write it: line by line, `done` ends it."""
    body = {"model": "slow", "messages": [{"role": "user", "content": "one two three"}]}
    text = ""
    with urllib3.PoolManager() as pool:
        response = pool.request("POST", f"http://127.0.0.1:{live.port}/api/chat", json=body, preload_content=False)
        with closing(response):
            for chunk in response.stream():
                for line in chunk.decode().splitlines():
                    if line.startswith("data: ") and '"done":false' in line:
                        text += json.loads(line[6:])["token"]
    assert text == "one two three"


def test_event_source_by_get(live: LiveServer) -> None:
    accept = {"accept": "text/event-stream"}
    first = live.get("/api/chat?model=echo&message=hello%20you", headers=accept)
    assert first.status == 200 and "".join(f["token"] for f in first.frames[:-1]) == "hello you"
    session = first.frames[-1]["session_id"]
    again = live.get(f"/api/chat?model=echo&message=more&session_id={session}", headers=accept)
    assert again.frames[-1]["session_id"] == session
    assert live.get(f"/api/sessions/{session}").json["message_count"] == 4
    # an EventSource that reconnects sends the id it saw, and must not send its message a second time
    seen = re.match(rb"id: (\S+)\ndata: ", first.body)
    assert seen
    reconnect = live.get("/api/chat?model=echo&message=x", headers=accept | {"last-event-id": seen[1].decode()})
    assert reconnect.status == 204 and reconnect.body == b""


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 406, "not_acceptable"),
        ({"accept": "text/html,*/*"}, 406, "not_acceptable"),
        ({"accept": "text/event-stream", "sec-fetch-site": "cross-site"}, 403, "origin_not_allowed"),
        ({"accept": "text/event-stream", "origin": "http://evil.example"}, 403, "origin_not_allowed"),
    ],
)
def test_get_chat_is_only_for_event_source(live: LiveServer, headers: dict[str, str], status: int, code: str) -> None:
    session = new_id()
    answer = live.get(f"/api/chat?model=echo&message=hi&session_id={session}", headers=headers)
    assert (answer.status, answer.code) == (status, code)
    assert live.get(f"/api/sessions/{session}").status == 404


@pytest.mark.parametrize("query", ["model=echo", "message=hi", "model=echo&message=hi&temperature=1", ""])
def test_get_chat_checks_its_query(live: LiveServer, query: str) -> None:
    answer = live.get(f"/api/chat?{query}", headers={"accept": "text/event-stream"})
    assert answer.status == 422
    if "temperature" in query:
        assert answer.message == "unknown field temperature; known: model, message, session_id"


def test_a_session_remembers(live: LiveServer) -> None:
    session = live.chat("My name is Ada.").json["session_id"]
    assert live.chat("What is my name?", session_id=session).json["session_id"] == session
    stored = live.get(f"/api/sessions/{session}").json
    assert [(m["role"], m["content"], m["status"]) for m in stored["messages"]] == [
        ("user", "My name is Ada.", "complete"),
        ("assistant", "My name is Ada.", "complete"),
        ("user", "What is my name?", "complete"),
        ("assistant", "What is my name?", "complete"),
    ]
    assert stored["model"] == "echo:latest" and stored["id"] == session


def test_a_client_that_sends_everything_again_adds_only_what_is_new(live: LiveServer) -> None:
    session, messages = None, []
    for text in ("first", "second"):
        messages.append({"role": "user", "content": text})
        body = {"model": "echo", "messages": messages, "session_id": session, "stream": False}
        answer = live.post("/api/chat", body).json
        session = answer["session_id"]
        messages.append(answer["message"])
    stored = live.get(f"/api/sessions/{session}").json["messages"]
    assert [m["content"] for m in stored] == ["first", "first", "second", "second"]


def test_an_unknown_session_is_made_under_its_id(live: LiveServer) -> None:
    session = new_id()
    assert live.chat("hello", session_id=session).json["session_id"] == session
    assert live.get(f"/api/sessions/{session}").json["message_count"] == 2


def test_a_retry_with_the_same_key_is_stored_once(live: LiveServer) -> None:
    session = new_id()
    body = {"model": "echo", "messages": [{"role": "user", "content": "once"}], "session_id": session, "stream": False}
    for _ in range(2):
        assert live.post("/api/chat", body, headers={"idempotency-key": "k-1"}).status == 200
    assert live.get(f"/api/sessions/{session}").json["message_count"] == 2


def test_sessions_are_listed_searched_and_deleted(live: LiveServer) -> None:
    session = live.chat("A zebra crosses the road").json["session_id"]
    listed = live.get("/api/sessions?limit=1").json["sessions"]
    assert [entry["id"] for entry in listed] == [session]
    found = live.get("/api/sessions?search=zebra").json["sessions"]
    assert [entry["id"] for entry in found] == [session] and "zebra" in found[0]["excerpt"].lower()
    assert live.request("DELETE", f"/api/sessions/{session}").json == {"id": session, "status": "deleted"}
    for method in ("GET", "DELETE"):
        answer = live.request(method, f"/api/sessions/{session}")
        assert (answer.status, answer.code) == (404, "session_not_found")


def test_generate(live: LiveServer) -> None:
    body = {"model": "echo", "prompt": "Once upon a time", "stream": False, "options": {"max_tokens": 2}}
    answer = live.post("/api/generate", body).json
    assert answer["text"] == "Once upon" and answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6, "cached_tokens": 0}
    frames = live.post("/api/generate", body | {"stream": True}).frames
    assert "".join(f["token"] for f in frames[:-1]) == "Once upon"
    assert frames[-1]["full_text"] == "Once upon" and "session_id" not in frames[-1]


def test_embeddings_of_one_and_of_several(live: LiveServer) -> None:
    one = live.post("/api/embeddings", {"model": "echo", "input": "abc"}).json
    assert one["embeddings"] == [3.0, 1.0] and one["model"] == "echo"
    many = live.post("/api/embeddings", {"model": "echo", "input": ["a", "bcd"]}).json
    assert many["embeddings"] == [[1.0, 1.0], [3.0, 1.0]]
    for wrong, said in (([], "input: list should have at least 1 item"), (5, "input: input should be a valid string")):
        refused = live.post("/api/embeddings", {"model": "echo", "input": wrong})
        assert refused.status == 422 and refused.message.startswith(said), refused.message


def test_models_are_listed_loaded_and_unloaded(start: StartServer) -> None:
    with start() as server:
        entry = next(m for m in server.get("/api/models").json["models"] if m["name"] == "echo:latest")
        assert entry["status"] == "available" and entry["family"] == "echo" and entry["size_bytes"] == 5
        assert entry.keys() >= {"quantization", "context_size"}
        assert server.get("/api/ps").json == {"models": []}
        loaded = server.post("/api/models/echo/load").json
        assert loaded["name"] == "echo:latest" and loaded["status"] == "loaded" and loaded["engine"] == "echo"
        assert server.get("/api/models/echo").json["status"] == "loaded"
        (running,) = server.get("/api/ps").json["models"]
        assert running["name"] == "echo:latest" and running["running"] == 0 and running["context_size"] == 4096
        for _ in range(2):
            answer = server.post("/api/models/echo:latest/unload", {})
            assert answer.json == {"name": "echo:latest", "status": "available"}
        assert server.get("/api/ps").json == {"models": []}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models/nope"),
        ("POST", "/api/models/nope/load"),
        ("POST", "/api/models/nope/unload"),
        ("POST", "/api/chat"),
        ("POST", "/api/generate"),
        ("POST", "/api/embeddings"),
    ],
)
def test_an_unknown_model_is_404_before_any_stream(live: LiveServer, method: str, path: str) -> None:
    bodies = {
        "/api/chat": {"model": "nope", "messages": [{"role": "user", "content": "x"}]},
        "/api/generate": {"model": "nope", "prompt": "x"},
        "/api/embeddings": {"model": "nope", "input": "x"},
    }
    answer = live.request(method, path, bodies.get(path))
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "nope" in answer.message


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "%2e%2e", "a%00b", "C:", "con", "%c3%a4", "x" * 10_000, "a%0d%0ab"])
def test_names_never_leave_the_models_directory(live: LiveServer, name: str) -> None:
    answer = live.get(f"/api/models/{name}")
    assert answer.status in (400, 404, 422) and answer.code


def test_health_says_only_a_status(live: LiveServer) -> None:
    answer = live.get("/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nope", 404, "not_found"), ("PUT", "/api/chat", 405, "method_not_allowed")],
)
def test_the_frameworks_own_errors_have_our_shape(
    live: LiveServer, method: str, path: str, status: int, code: str
) -> None:
    answer = live.request(method, path)
    assert (answer.status, answer.code) == (status, code)


def test_a_plugins_route_is_there_and_a_broken_one_stops_nothing(live: LiveServer) -> None:
    assert live.get("/echo/ping").json == {"ping": "pong"}


def test_the_request_id_is_the_clients_own_when_it_is_plain(live: LiveServer) -> None:
    assert live.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert re.fullmatch(r"[0-9a-f]{16}", live.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"])


def test_text_that_looks_like_a_template_stays_text(live: LiveServer) -> None:
    text = "{{7*7}} ${x} %s {0} $(id) `id` [red]"
    assert live.chat(text).json["message"]["content"] == text


def test_two_requests_on_one_connection(live: LiveServer) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with live.connect() as connection:
        connection.sendall(request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        raw = read_all(connection)
    assert raw.count(b"HTTP/1.1 200") == 2 and parse_answer(raw).status == 200
