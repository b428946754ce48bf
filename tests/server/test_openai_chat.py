"""`POST /v1/chat/completions` as OpenAI's clients depend on it, frame by frame."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from myllm_core import __version__
from support.server import Answer, LiveServer, StartServer, eventually, read_until

USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 3,
    "total_tokens": 6,
    "prompt_tokens_details": {"cached_tokens": 0},
}
LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`


def ask(live: LiveServer, text: Any = "Why not now?", **fields: Any) -> Answer:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}
    return live.post("/v1/chat/completions", body)


def chunks_of(answer: Answer) -> list[dict[str, Any]]:
    """The chunks of a whole stream, after checking what is true of every one."""
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"\n\n")
    frames = answer.body.decode().split("\n\n")[:-1]
    assert all(re.fullmatch(r"data: [^\n]+", frame) for frame in frames)
    assert frames[-1] == "data: [DONE]"
    chunks = [json.loads(frame[6:]) for frame in frames[:-1]]
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in chunks}) == 1
    assert chunks[0]["id"] and chunks[0]["created"] > 0
    return chunks


def deltas(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """One choice's deltas, after checking roles and reasons to finish."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] and choices[-1]["delta"] == {}
    assert all(choice["logprobs"] is None for choice in choices)
    return [choice["delta"] for choice in choices]


def test_a_document(live: LiveServer) -> None:
    answer = ask(live)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    body = answer.json
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body.pop("id")) and body.pop("created") > 1_700_000_000
    message = {"role": "assistant", "content": "Why not now?", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": "echo",
        "system_fingerprint": f"myllm-{__version__}-echo",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert answer.headers["x-request-id"] and "x-myllm-ignored" not in answer.headers


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_a_stream_has_no_usage_unless_it_is_asked_for(live: LiveServer, options: dict[str, Any]) -> None:
    chunks = chunks_of(ask(live, model="slow", stream=True, **options))
    assert [delta.get("content") for delta in deltas(chunks)] == ["", "Why", " not", " now?", None]
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_usage_is_a_chunk_of_its_own_and_null_before(live: LiveServer) -> None:
    *chunks, last = chunks_of(ask(live, stream=True, stream_options={"include_usage": True}))
    assert "".join(delta.get("content", "") for delta in deltas(chunks)) == "Why not now?"
    assert last["choices"] == [] and last["usage"] == USAGE
    assert all(chunk["usage"] is None for chunk in chunks)


def test_several_answers(live: LiveServer) -> None:
    body = ask(live, n=3, seed=2**32 - 1).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"Why not now?"}
    assert body["usage"] == USAGE | {"completion_tokens": 9, "total_tokens": 12}
    *chunks, last = chunks_of(ask(live, model="slow", n=3, stream=True, stream_options={"include_usage": True}))
    for index in range(3):
        assert "".join(delta.get("content", "") for delta in deltas(chunks, index)) == "Why not now?"
    order = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert order != sorted(order), "they run side by side"
    assert last["usage"] == body["usage"] and last["choices"] == []


def test_more_answers_than_run_at_once(live: LiveServer) -> None:
    body = ask(live, n=40).json
    assert len(body["choices"]) == 40 and body["usage"]["completion_tokens"] == 120


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_hold(live: LiveServer, field: str) -> None:
    choice = ask(live, **{field: 2}).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Why not", "length")
    chunks = chunks_of(ask(live, stream=True, **{field: 2}))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert ask(live, max_tokens=2, max_completion_tokens=2).status == 200


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "hi"},
        {"role": "system", "content": "hi"},
        {"role": "user", "content": "hi", "name": "Ada"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "hi", "tool_calls": None, "refusal": None, "audio": None},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}], "reasoning_content": "hm"},
        {"role": "assistant", "content": None, "refusal": "hi"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "hi"}]},
    ],
)
def test_every_kind_of_message(live: LiveServer, message: dict[str, Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    before = [called] if message["role"] == "tool" else []
    body = {"model": "echo", "messages": [{"role": "user", "content": "?"}, *before, message], "tools": None}
    answer = live.post("/v1/chat/completions", body)
    assert answer.status == 200 and answer.json["choices"][0]["message"]["content"] == "hi"


def test_text_parts_become_lines(live: LiveServer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert ask(live, parts).json["choices"][0]["message"]["content"] == "one\ntwo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [{}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"store": True}, "store"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"moderation": {}}, "moderation"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}, "content": "x"}]}, "messages[0].audio"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_done_is_refused(live: LiveServer, fields: dict[str, Any], param: str, stream: bool) -> None:
    answer = ask(live, stream=stream, **fields)
    error = answer.json["error"]
    assert (answer.status, error["type"], error["code"]) == (400, "invalid_request_error", "unsupported")
    assert error["param"] == param and param.split(".")[-1] in error["message"]


def test_fields_that_ask_for_nothing_are_taken(live: LiveServer) -> None:
    nothing = {
        "tools": [],
        "tool_choice": "auto",
        "functions": None,
        "function_call": "none",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "modalities": ["text"],
        "store": False,
        "metadata": {},
        "prompt_cache_key": "mine",
        "prompt_cache_retention": "in_memory",
        "prediction": {"type": "content", "content": "hi"},
        "safety_identifier": "ada",
        "service_tier": "auto",
        "stream_options": {"include_obfuscation": False},
        "n": None,
        "stop": None,
        "seed": None,
        "stream": None,
        "logprobs": False,
        "top_logprobs": 0,
        "max_tokens": None,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "user": "u1",
    }
    answer = ask(live, **nothing)
    assert answer.status == 200, answer.body
    assert "x-myllm-ignored" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 5}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "json_schema": {}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls"),
        ({"reasoning_effort": "maximal"}, "reasoning_effort"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x.[key]"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = ask(live, **fields)
    error = answer.json["error"]
    assert (answer.status, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert error["message"] and "\n" not in error["message"]
    assert "{{" not in error["message"] and "dictionary" not in error["message"]


def test_what_the_model_cannot_do_is_refused(live: LiveServer) -> None:
    for fields, said in (
        ({"top_k": 5}, "top_k"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"logprobs": True}, "log probabilities"),
        ({"response_format": {"type": "json_object"}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}}, "schema"),
        ({"ignore_eos": True}, "ignore_eos"),
    ):
        answer = ask(live, **fields)
        assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported"), fields
        assert said in answer.json["error"]["message"]


def test_fields_that_openai_does_not_have_are_named(live: LiveServer) -> None:
    messages = [{"role": "user", "content": "hi", "name": "Ada", "x": None}]
    fields = {"top_a": 1, "stream_options": {"foo": 1}, "nothing": None}
    for stream in (False, True):
        answer = ask(live, messages=messages, stream=stream, **fields)
        assert answer.status == 200
        assert answer.headers["x-myllm-ignored"] == "messages.name, stream_options.foo, top_a"
    hostile = {"a\r\nset-cookie: x": 1, "é": 1, "y" * 100: 1} | {f"f{i}": 1 for i in range(100)}
    answer = ask(live, **hostile)
    assert answer.status == 200 and "set-cookie" not in answer.headers
    assert re.fullmatch(r"\?(, f\d+){19}", answer.headers["x-myllm-ignored"])


def test_a_chat_is_kept_nowhere(start: StartServer) -> None:
    with start() as server:
        assert ask(server).status == 200
        assert server.get("/api/sessions").json == {"sessions": []}


def send(live: LiveServer, body: dict[str, Any]) -> Any:
    """Begin a request and return its connection, nothing read."""
    data = json.dumps(body).encode()
    connection = live.connect()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
    )
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_ends_all_its_answers(live: LiveServer, stream: bool, n: int) -> None:
    body = {"model": "slow", "messages": [{"role": "user", "content": LONG}], "stream": stream, "n": n}
    connection = send(live, body)
    if stream:
        read_until(connection, rb'"content":" w3"')
    eventually(lambda: live.running() == n)
    connection.close()
    eventually(lambda: live.running() == 0, 1.5)


def test_comments_keep_a_silent_stream_alive(start: StartServer) -> None:
    with start(ping_interval="20ms") as server:
        answer = ask(server, model="slow", stream=True)
        lines = [line for line in answer.body.decode().split("\n") if line]
        assert ":" in lines and lines[-1] == "data: [DONE]"
        assert all(line.startswith((":", "data: ")) for line in lines)
