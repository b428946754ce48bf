"""Tool calls through the native API and OpenAI's: streams, documents, sessions, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.server import Answer, LiveServer, StartServer, eventually, read_until

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = [{"name": "add", "description": "Adds", "parameters": PARAMETERS}, {"name": "now"}]
FUNCTIONS = [{"type": "function", "function": tool} for tool in TOOLS]
ASK = 'call add {"a": 12345}\ncall now {}'


def native(live: LiveServer, content: str = ASK, **more: Any) -> Answer:
    body = {"model": "echo", "messages": [{"role": "user", "content": content}], "tools": TOOLS, "stream": False}
    return live.post("/api/chat", body | more)


def chat(live: LiveServer, content: str = ASK, **more: Any) -> Answer:
    body = {"model": "echo", "messages": [{"role": "user", "content": content}], "tools": FUNCTIONS}
    return live.post("/v1/chat/completions", body | more)


def test_a_native_answer_has_its_calls(live: LiveServer) -> None:
    body = native(live).json
    calls = body["message"]["tool_calls"]
    assert [(call["name"], call["arguments"]) for call in calls] == [("add", '{"a": 12345}'), ("now", "{}")]
    assert len({call["id"] for call in calls}) == 2 and body["finish_reason"] == "tool_calls"
    assert body["message"]["content"] == ""


def test_a_native_stream_tells_calls_piece_by_piece(live: LiveServer) -> None:
    *frames, last = native(live, stream=True).frames
    pieces = [frame["tool_call"] for frame in frames]
    assert all(frame["token"] == "" and frame["done"] is False for frame in frames)
    assert [(p["index"], p["name"]) for p in pieces if p["id"]] == [(0, "add"), (1, "now")]
    assert "".join(p["arguments"] for p in pieces if p["index"] == 0) == '{"a": 12345}'
    assert last["finish_reason"] == "tool_calls" and last["full_text"] == ""
    assert [call["arguments"] for call in last["tool_calls"]] == ['{"a": 12345}', "{}"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_session_keeps_calls_and_results(start: StartServer, stream: bool) -> None:
    with start() as server:
        native(server, session_id="s", stream=stream)
        asked, called = server.get("/api/sessions/s").json["messages"]
        calls = called["tool_calls"]
        assert called["content"] == "" and called["status"] == "complete" and len(calls) == 2
        unanswered = native(server, "and now?", session_id="s")
        assert unanswered.status == 400 and "has no result" in unanswered.message
        results = [{"role": "tool", "content": f"r{i}", "tool_call_id": call["id"]} for i, call in enumerate(calls)]
        body = {"model": "echo", "session_id": "s", "stream": False, "messages": results}
        assert server.post("/api/chat", body).json["message"]["content"] == "r1"
        # a client that sends everything again adds only what is new
        again = [{"role": "user", "content": ASK}, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
        again += [{"role": "assistant", "content": "r1"}, {"role": "user", "content": "bye"}]
        assert server.post("/api/chat", body | {"messages": again}).json["message"]["content"] == "bye"
        stored = server.get("/api/sessions/s").json["messages"]
        assert [m["role"] for m in stored] == ["user", "assistant", "tool", "tool", "assistant", "user", "assistant"]
        assert stored[2]["tool_call_id"] == calls[0]["id"]


def test_a_reply_that_was_cut_is_kept_without_calls_that_nobody_answers(start: StartServer) -> None:
    with start() as server:
        long = "call add {" + '"a": 1, ' * 400 + '"b": 2}'
        connection = server.send_chat(long, model="slow", session_id="cut", tools=TOOLS)
        read_until(connection, rb'"arguments":"\{')
        connection.close()
        eventually(lambda: server.get("/api/sessions/cut").status == 200)
        reply = server.get("/api/sessions/cut").json["messages"][-1]
        assert reply["status"] == "cancelled" and "tool_calls" not in reply
        assert reply["content"].startswith('{"name": "add", "arguments": {')
        assert native(server, "hi", session_id="cut").json["message"]["content"] == "hi"


def test_what_cannot_be_is_refused_by_name(live: LiveServer) -> None:
    for more, said in (
        ({"tool_choice": {"name": "other"}}, "no tool 'other'"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"tools": [{"name": "x y"}]}, "can't be a name"),
        ({"tools": TOOLS * 2}, "add is there twice"),
        ({"tools": [{"name": f"f{i}"} for i in range(200)]}, "at most 128"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "no call 'c' waits"),
    ):
        answer = native(live, **more)
        assert (answer.status, answer.code) == (400, "invalid_request") and said in answer.message, more
    assert native(live, tool_choice="maybe").status == 422
    call = {"id": "c", "name": "add", "arguments": "{}"}
    for messages, said in (
        ([{"role": "user", "content": "x", "tool_calls": [call]}], "only an assistant"),
        ([{"role": "assistant", "content": "", "tool_calls": [call, call]}], "same id"),
        ([{"role": "assistant", "content": "", "tool_calls": [call]}], "has no result"),
    ):
        answer = native(live, messages=[*messages, {"role": "user", "content": "x"}])
        assert answer.status == 400 and said in answer.message


def test_a_choice_holds(live: LiveServer) -> None:
    assert native(live, tool_choice="none").json["message"]["content"] == ASK
    assert [c["name"] for c in native(live, tool_choice={"name": "now"}).json["message"]["tool_calls"]] == ["now"]
    assert len(native(live, parallel_tool_calls=False).json["message"]["tool_calls"]) == 1
    assert native(live, "hello", tool_choice="required").code == "unsupported"
    named = {"type": "function", "function": {"name": "now"}}
    message = chat(live, tool_choice=named).json["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["now"]
    assert len(chat(live, parallel_tool_calls=False).json["choices"][0]["message"]["tool_calls"]) == 1
    assert chat(live, tool_choice="none").json["choices"][0]["message"]["content"] == ASK
    other = {"type": "function", "function": {"name": "other"}}
    assert chat(live, tool_choice=other).json["error"]["param"] == "tool_choice"


def test_openai_calls_as_a_document_and_as_a_stream(live: LiveServer) -> None:
    choice = chat(live, n=2).json["choices"][1]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert functions == [{"name": "add", "arguments": '{"a": 12345}'}, {"name": "now", "arguments": "{}"}]
    chunks = [json.loads(line[6:]) for line in chat(live, stream=True).body.splitlines() if line.startswith(b"data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    pieces = [call for delta in deltas[1:-1] for call in delta["tool_calls"]]
    assert [(p["index"], p["function"]["name"]) for p in pieces if "id" in p] == [(0, "add"), (1, "now")]
    assert "".join(p["function"]["arguments"] for p in pieces if p["index"] == 0) == '{"a": 12345}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_whole_round_of_openai(live: LiveServer) -> None:
    message = chat(live).json["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in message["tool_calls"]]
    body = {"model": "echo", "messages": [{"role": "user", "content": ASK}, message, *results], "tools": FUNCTIONS}
    assert live.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"] == "done"
    unanswered = live.post("/v1/chat/completions", body | {"messages": body["messages"][:-1]})
    assert unanswered.status == 400 and "has no result" in unanswered.json["error"]["message"]
