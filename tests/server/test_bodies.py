"""Bodies that can't be used: each is refused in one line, with the right status, and nothing is generated."""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import myllm_server
from myllm_server.brief import Brief
from support.server import LiveServer, StartServer, parse_answer, read_all

HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "echo", "messages": HELLO, "stream": False}


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b" ", 400),
        (b"{", 400),
        (b'{"model": "echo",}', 400),
        (b"{'model': 'echo'}", 400),
        (b'{"model": "echo"} x', 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"1", 422),
        (b"{}", 422),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'{"model": "\xff", "messages": []}', 400),
        (json.dumps(CHAT).encode("utf-16"), 400),
        (json.dumps(CHAT).encode("utf-16-le"), 400),
        (b'\xef\xbb\xbf{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": false}', 200),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}', 422),
        (b'{"\\udfff": 1}', 422),
    ],
)
def test_what_is_no_json_object(live: LiveServer, raw: bytes, status: int) -> None:
    began = time.monotonic()
    answer = live.post("/api/chat", raw=raw)
    assert answer.status == status and time.monotonic() - began < 2
    assert status == 200 or answer.code in ("invalid_json", "invalid_request")


def test_an_empty_body(live: LiveServer) -> None:
    answer = live.request("POST", "/api/chat", headers={"content-type": "application/json"})
    assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1" + "0" * 400])
@pytest.mark.parametrize("option", ["temperature", "top_k", "seed"])
def test_numbers_that_are_none(live: LiveServer, option: str, number: str) -> None:
    raw = json.dumps(CHAT)[:-1] + f', "options": {{"{option}": {number}}}}}'
    assert live.post("/api/chat", raw=raw.encode()).status == 422


OPTIONS: list[tuple[str, Any]] = [
    *(("max_tokens", value) for value in (-2, 0, 2**63, 1.5, "5", True, [1], {})),
    *(("temperature", value) for value in (-0.1, 2.1, "0.5", False, [])),
    *(("top_p", value) for value in (-0.1, 1.1, "1")),
    *(("min_p", value) for value in (-0.1, 1.1)),
    *(("top_k", value) for value in (-1, 2**31, 0.5, "40")),
    *(("seed", value) for value in (-1, 2**32, 0.5, "1", True)),
    *(("repeat_penalty", value) for value in (0, -1, 11)),
    *(("stop", value) for value in ("", [""], ["x"] * 17, [1], 5, "x" * 1001)),
    *((name, 1) for name in ("n_discard", "rpc_servers", "model_path", "lora_path", "n_ctx", "grammar", "num_ctx")),
    *((name, "{{1}}") for name in ("chat_template", "template", "chat_template_kwargs")),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_options_out_of_range_of_the_wrong_type_or_unknown(
    live: LiveServer, path: str, name: str, value: object
) -> None:
    body = {"model": "echo", "options": {name: value}} | (
        {"messages": HELLO} if path == "/api/chat" else {"prompt": "hi"}
    )
    answer = live.post(path, body)
    assert answer.status == 422 and name in answer.message
    if name in ("n_discard", "chat_template"):
        assert answer.code == "unknown_field"
        assert "known: temperature, top_k, top_p, min_p" in answer.message


@pytest.mark.parametrize(
    ("path", "body", "known"),
    [
        (
            "/api/chat",
            CHAT | {"chat_template": "{{1}}"},
            "model, messages, session_id, stream, options, keep_alive, tools, tool_choice, parallel_tool_calls",
        ),
        (
            "/api/chat",
            CHAT | {"temperature": 1},
            "model, messages, session_id, stream, options, keep_alive, tools, tool_choice, parallel_tool_calls",
        ),
        (
            "/api/chat",
            CHAT | {"messages": [HELLO[0] | {"name": "x"}]},
            "role, content, images, tool_calls, tool_call_id",
        ),
        ("/api/generate", {"model": "echo", "prompt": "x", "raw": True}, "model, prompt, stream, options, keep_alive"),
        ("/api/embeddings", {"model": "echo", "input": "x", "dimensions": 1}, "model, input, keep_alive"),
        ("/api/models/echo/load", {"n_ctx": 1}, "keep_alive"),
        ("/api/models/echo/unload", {"keep_alive": 1}, "none"),
    ],
)
def test_an_unknown_field_is_refused_with_the_known_ones(
    live: LiveServer, path: str, body: dict[str, Any], known: str
) -> None:
    answer = live.post(path, body)
    assert (answer.status, answer.code) == (422, "unknown_field")
    assert answer.message.endswith(f"known: {known}")


def test_parts_of_other_dialects_are_refused_and_the_refusal_says_where_images_go(live: LiveServer) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    answer = live.post("/api/chat", CHAT | {"messages": [{"role": "user", "content": [image]}]})
    assert answer.status == 422
    assert answer.message.endswith("send a text; lists of parts aren't taken here, images go in images")


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": []},
        {"messages": None},
        {"messages": "hi"},
        {"messages": {}},
        {"messages": [None]},
        {"messages": ["hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["hi"]}]},
        {"messages": [{"role": "root", "content": "hi"}]},
        {"messages": [{"role": "USER", "content": "hi"}]},
        {"messages": HELLO * 10_001},
        {"session_id": ""},
        {"session_id": "x" * 129},
        {"session_id": "x" * 2**20},
        {"session_id": "a b"},
        {"session_id": "../x"},
        {"session_id": "a\0"},
        {"session_id": "a\n"},
        {"session_id": "ä"},
        {"session_id": 5},
        {"stream": "false"},
        {"stream": 0},
        {"stream": None},
        {"model": ""},
        {"model": None},
        {"model": 5},
        {"model": "x" * 201},
        {"options": None},
        {"options": []},
        {"options": "x"},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_fields_of_the_wrong_shape(live: LiveServer, changed: dict[str, Any]) -> None:
    answer = live.post("/api/chat", CHAT | changed)
    assert (answer.status, answer.code) == (422, "invalid_request")
    assert len(answer.message) < 500


@pytest.mark.parametrize("value", [None, 5, [], [5], ["x", None], {}, [["x"]], ["x"] * 2049])
def test_inputs_of_the_wrong_shape(live: LiveServer, value: object) -> None:
    assert live.post("/api/embeddings", {"model": "echo", "input": value}).status == 422


def test_session_id_null_is_a_new_session(live: LiveServer) -> None:
    assert live.chat("hi", session_id=None).json["session_id"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/chat?x=1"])
@pytest.mark.parametrize(
    "name", ["../etc", "/etc/passwd", "file:/etc/passwd", "C:\\x", "con", "a\0b", "a\r\nb", "ｅｃｈｏ"]
)
def test_model_names_are_names(live: LiveServer, path: str, name: str) -> None:
    answer = live.post(path, CHAT | {"model": name})
    assert (answer.status, answer.code) == (400, "invalid_reference")
    assert answer.body.count(b"\n") == 0


def test_nul_in_a_text_is_text(live: LiveServer) -> None:
    answer = live.chat("a\0b c")
    assert answer.status == 200 and answer.json["message"]["content"] == "a\0b c"
    assert live.get(f"/api/sessions/{answer.json['session_id']}").json["messages"][0]["content"] == "a\0b c"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=())), stream=st.booleans())
def test_any_text_comes_back_as_it_was_or_is_refused(live: LiveServer, text: str, stream: bool) -> None:
    answer = live.chat(text, stream=stream)
    answer.body.decode("utf-8")
    try:
        text.encode()
    except UnicodeEncodeError:
        assert answer.status == 422
        return
    assert answer.status == 200
    assert (answer.frames[-1]["full_text"] if stream else answer.json["message"]["content"]) == text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["model", "messages", "role", "content", "options", "stop", "seed", "input", "prompt"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    ),
    path=st.sampled_from(["/api/chat", "/api/generate", "/api/embeddings"]),
)
def test_no_json_at_all_makes_a_500(live: LiveServer, body: object, path: str) -> None:
    answer = live.post(path, raw=json.dumps(body).encode())
    assert answer.status in (400, 404, 422) and answer.code


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1E+400", "9" * 400 + ".0"])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1/messages", "/ollama/api/chat"])
def test_numbers_that_are_none_are_refused_where_any_value_is_taken(live: LiveServer, path: str, number: str) -> None:
    """A response tells the tools that it was asked with: it would hold NaN too."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "default": "NUMBER"}}
    raw = json.dumps({"model": "echo", "input": "x", "messages": HELLO, "tools": [tool]})
    answer = live.post(path, raw=raw.replace('"NUMBER"', number).encode())
    assert answer.status == 400 and "no number of JSON" in answer.body.decode()


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/chat", "messages"),
        ("/api/chat", "tools"),
        ("/api/detokenize", "tokens"),
        ("/v1/chat/completions", "tools"),
        ("/v1/responses", "input"),
        ("/v1/messages", "stop_sequences"),
        ("/ollama/api/chat", "messages"),
    ],
)
def test_a_list_of_wrong_entries_is_refused_for_its_first(live: LiveServer, path: str, field: str) -> None:
    """pydantic would make an error of 1 kB of each: a body of 32 MiB could fill the memory."""
    wrong = ["x" if field == "tokens" else 0] * 9_000
    more: dict[str, Any] = {} if field == "tokens" else {"messages": HELLO}
    more |= {"max_tokens": 1} if path == "/v1/messages" else {}
    answer = live.post(path, {"model": "echo"} | more | {field: wrong})
    assert answer.status in (400, 422)
    assert field in answer.body.decode() and " more)" not in answer.body.decode(), answer.body


def test_every_list_of_a_body_ends_at_its_first_wrong_entry() -> None:
    lists = [found for model in _models(Brief) for found in _lists(model.__pydantic_core_schema__)]
    assert len(lists) > 30 and all(found.get("fail_fast") for found in lists)
    unbounded = [
        model
        for module in pkgutil.walk_packages(myllm_server.__path__, "myllm_server.")
        for model in vars(importlib.import_module(module.name)).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.name
        if not issubclass(model, Brief) and any(_lists(model.__pydantic_core_schema__))
    ]
    assert unbounded == []


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _lists(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict) and schema.get("type") == "list":
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _lists(part)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_an_object_of_very_many_fields_is_refused_as_one(live: LiveServer, path: str) -> None:
    body = CHAT | {"options" if path == "/api/chat" else "logit_bias": {f"x{index}": 1 for index in range(10_001)}}
    answer = live.post(path, body)
    assert answer.status in (400, 422) and "more than 10000 fields" in answer.body.decode()


def test_answers_never_hold_nan() -> None:
    from myllm_server.errors import json_bytes

    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"x": float("nan")})
    assert json_bytes("\ud800") == b'"?"'


def test_a_large_body_is_refused_while_it_is_read(start: StartServer) -> None:
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with start(max_body_bytes=100_000) as server:
        just = json.dumps(CHAT | {"model": "nope" * 10}).encode()
        assert server.post("/api/chat", raw=just + b" " * (100_000 - len(just))).status == 404
        assert server.post("/api/chat", raw=just + b" " * (100_001 - len(just))).status == 413
        # a length that lies is believed when it is too large
        answer = server.raw(head + b"Content-Length: 64000000\r\n\r\n{")
        assert (answer.status, answer.code) == (413, "body_too_large")
        # chunks without an end
        before = psutil.Process().memory_info().rss
        with server.connect() as connection:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            connection.settimeout(5)
            sent = 0
            with suppress(ConnectionError, TimeoutError):
                while sent < 64_000_000:
                    sent += connection.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            assert parse_answer(read_all(connection)).status == 413
        assert psutil.Process().memory_info().rss - before < 20_000_000
        assert server.get("/health").status == 200


def test_a_large_body_sent_whole_still_gets_its_answer(start: StartServer) -> None:
    """The client writes all before it reads: the answer must not be lost in a connection reset."""
    with start(max_body_bytes=1024) as server:
        answer = server.post("/api/chat", raw=b" " * 8_000_000)
        assert (answer.status, answer.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Big: " + b"a" * 5_000_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (i, b"a" * 100) for i in range(1000)),
        b"X-Many: a\r\n" * 100_000,
    ],
)
def test_heads_without_measure(live: LiveServer, headers: bytes) -> None:
    with live.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
        raw = read_all(connection)
    assert not raw or parse_answer(raw).status in (400, 431)
    assert live.get("/health").status == 200
