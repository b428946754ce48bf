"""`/v1/messages` as Anthropic's clients depend on it, event by event."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from support.events import script, told_server
from support.server import Answer, LiveServer, StartServer, eventually, install_echo, live_server, read_until

END = ("finish", "stop")
USAGE = {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 3}
LONG = " ".join(f"w{i}" for i in range(400))  # 20 s with the model `slow`


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def ask(live: LiveServer, content: Any = "Why not now?", **fields: Any) -> Answer:
    body = {"model": "echo", "max_tokens": 64, "messages": user(content), **fields}
    return live.post("/v1/messages", {name: value for name, value in body.items() if value != "left out"})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the model ``told``."""
    with told_server(tmp_path_factory.mktemp("told")) as server:
        yield server


def tell(told: LiveServer, *events: tuple[str, Any], **fields: Any) -> Answer:
    return ask(told, script(*events), **({"model": "told"} | fields))


def events_of(answer: Answer) -> list[dict[str, Any]]:
    """The events of a whole stream, after checking what is true of every one."""
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.body
    frames = answer.body.decode().split("\n\n")
    assert frames.pop() == ""
    events = []
    for frame in frames:
        found = re.fullmatch(r"event: (\w+)\ndata: ([^\n]+)", frame)
        assert found, frame
        events.append(json.loads(found[2]))
        assert found[1] == events[-1]["type"]
    return events


def error_of(answer: Answer) -> tuple[int, str, str]:
    """Status, type and message, after checking the shape."""
    body = answer.json
    assert body.keys() == {"type", "error", "request_id"} and body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status, body["error"]["type"], body["error"]["message"]


def test_a_document(live: LiveServer) -> None:
    answer = ask(live)
    assert answer.status == 200 and answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "x-myllm-ignored" not in answer.headers
    body = answer.json
    assert re.fullmatch(r"msg_[0-9a-f]{32}", body.pop("id"))
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "echo",
        "content": [{"type": "text", "text": "Why not now?"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE | {"cache_read_input_tokens": 0},
    }


def test_a_stream_has_its_events_in_order(live: LiveServer) -> None:
    events = events_of(ask(live, model="slow", stream=True))
    kinds = [event["type"] for event in events]
    deltas = ["content_block_delta"] * 3
    ending = ["content_block_stop", "message_delta", "message_stop"]
    assert kinds == ["message_start", "content_block_start", *deltas, *ending]
    message = events[0]["message"]
    assert message["content"] == [] and message["stop_reason"] is None and message["id"].startswith("msg_")
    assert events[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert [event["delta"] for event in events[2:5]] == [
        {"type": "text_delta", "text": text} for text in ("Why", " not", " now?")
    ]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"] == USAGE | {"cache_read_input_tokens": 0}


def test_every_kind_of_block_has_an_index_and_an_end(told: LiveServer) -> None:
    calls = [(0, "c1", "add", ""), (0, None, None, '{"a":'), (0, None, None, "1}"), (1, "c2", "stop", "{}")]
    said = [("reasoning", "h"), ("reasoning", "m"), ("text", "yes"), *(("call", call) for call in calls)]
    said.append(("finish", "tool_calls"))
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "myllm"},
        {"type": "text", "text": "yes"},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "stop", "input": {}},
    ]
    whole = tell(told, *said).json
    assert whole["content"] == content and whole["stop_reason"] == "tool_use" and whole["usage"] == USAGE
    events = events_of(tell(told, *said, stream=True))
    assert rebuilt(events) == content
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [start["index"] for start in starts] == [0, 1, 2, 3] and starts[2]["content_block"]["input"] == {}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a client makes of the events, after checking that blocks never overlap."""
    blocks: list[dict[str, Any]] = []
    texts: list[str] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(blocks)
                blocks.append(dict(event["content_block"]))
                texts.append("")
                is_open = True
            case "content_block_delta":
                assert is_open and event["index"] == len(blocks) - 1
                delta = event["delta"]
                for field in ("text", "thinking", "signature"):
                    if field in delta:
                        blocks[-1][field] += delta[field]
                texts[-1] += delta.get("partial_json", "")
            case "content_block_stop":
                assert is_open and event["index"] == len(blocks) - 1
                is_open = False
    assert not is_open
    for block, text in zip(blocks, texts, strict=True):
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
    return blocks


def test_reasoning_that_isnt_to_be_shown(told: LiveServer) -> None:
    said = [("reasoning", "hm"), ("text", "yes"), END]
    how = {"thinking": {"type": "adaptive", "display": "omitted"}}
    for content in (
        tell(told, *said, **how).json["content"],
        rebuilt(events_of(tell(told, *said, stream=True, **how))),
    ):
        assert content == [
            {"type": "thinking", "thinking": "", "signature": "myllm"},
            {"type": "text", "text": "yes"},
        ]


def test_an_empty_answer(told: LiveServer) -> None:
    assert tell(told, END).json["content"] == []
    events = events_of(tell(told, END, stream=True))
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]
    assert events[0]["message"]["usage"] == USAGE, "what is known by then"


def test_the_prompts_tokens_are_told_before_the_text(told: LiveServer) -> None:
    said = [("progress", "prompt"), ("read", 2), ("reasoning", "hm"), ("text", "yes"), END]
    events = events_of(tell(told, *said, stream=True))
    usage = events[0]["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (3, 2, 0)
    assert [event["type"] for event in events].count("message_start") == 1
    assert tell(told, *said).json["usage"] == USAGE


def test_why_an_answer_ended(told: LiveServer, live: LiveServer) -> None:
    assert ask(live, max_tokens=2).json["stop_reason"] == "max_tokens"
    full = ("finish", "length")
    for stream in (False, True):
        answer = tell(told, full, stream=stream)
        reason = events_of(answer)[-2]["delta"]["stop_reason"] if stream else answer.json["stop_reason"]
        assert reason == "model_context_window_exceeded", "it was allowed more than it wrote"


def test_a_stop_sequence_is_told(told: LiveServer) -> None:
    for stream in (False, True):
        answer = tell(told, ("text", "so far ST"), ("text", "OP"), END, stop_sequences=["no", "STOP"], stream=stream)
        last = events_of(answer)[-2]["delta"] if stream else answer.json
        assert (last["stop_reason"], last["stop_sequence"]) == ("stop_sequence", "STOP")
        assert stream or answer.json["content"] == [{"type": "text", "text": "so far "}]


def test_what_reaches_the_engine(told: LiveServer) -> None:
    messages = [
        *user(
            [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]
        ),
        *user("three"),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I add"},
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "add", "input": {}},
            ],
        },
        *user(
            [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "4"}]},
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": "no"},
                {"type": "text", "text": script(("request", ""), END)},
            ]
        ),
    ]
    system = [{"type": "text", "text": "be kind"}]
    fields = {"temperature": None, "system": system, "metadata": {"user_id": "ada"}, "service_tier": "auto"}
    answer = ask(told, model="told", messages=messages, max_tokens=9, **fields)
    request = answer.json["content"][0]["text"]
    assert "x-myllm-ignored" not in answer.headers
    assert "Message(role='system', content='be kind'" in request
    assert "Message(role='user', content='one\\ntwo\\nthree'" in request
    assert (
        "content='I add', reasoning='hm', tool_calls=(ToolCall(id='c1', name='add', arguments='{\"a\": 1}')" in request
    )
    assert "Message(role='tool', content='4', reasoning='', tool_calls=(), tool_call_id='c1'" in request
    assert "Message(role='tool', content='Error: no', reasoning='', tool_calls=(), tool_call_id='c2'" in request
    assert "max_tokens=9" in request and "fit='error'" in request


def test_options_of_myllm_are_fields_too(told: LiveServer) -> None:
    request = tell(told, ("request", ""), END, seed=7, fit="drop").json["content"][0]["text"]
    assert "seed=7" in request and "fit='drop'" in request


@pytest.mark.parametrize(
    ("fields", "about"),
    [
        ({"max_tokens": "left out"}, "max_tokens: field required"),
        ({"max_tokens": 0}, "max_tokens:"),
        ({"max_tokens": "5"}, "max_tokens:"),
        ({"max_tokens": True}, "max_tokens:"),
        ({"messages": []}, "messages:"),
        ({"messages": "left out"}, "messages: field required"),
        ({"model": "left out"}, "model: field required"),
        ({"temperature": 2.5}, "temperature:"),
        ({"top_p": -1}, "top_p:"),
        ({"stop_sequences": [""]}, "stop"),
        ({"stop_sequences": ["a"], "stop": "b"}, "stop_sequences: there is a stop too"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0.image.source",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role:"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content:"),
        ({"messages": user([{"type": "tool_use", "id": "c", "name": "f", "input": {}}])}, "has no tool_use"),
        ({"messages": [*user("x"), {"role": "assistant", "content": "The"}]}, "can't be continued"),
        ({"messages": user([{"type": "tool_result", "tool_use_id": "c9", "content": "4"}])}, "c9"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type: web_search_20250305"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema:"),
        ({"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}, "tools.0.defer_loading:"),
        ({"tools": [{"name": "f", "input_schema": {}, "input_examples": [{}]}]}, "tools.0.input_examples:"),
        (
            {"messages": user([{"type": "text", "text": "x", "citations": [{}]}])},
            "messages.0.content.0.citations: this server",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there are no tools"),
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool"}}, "say which"),
        ({"container": "c"}, "container: this server can't do that"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers:"),
        ({"output_config": {"effort": "max"}}, "output_config.effort:"),
        ({"logprobs": 1}, "logprobs:"),
        ({"thinking": {"type": "always"}}, "thinking.type:"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type:"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "no option reasoning_effort"),
        ({"output_config": {"effort": "low"}}, "no option reasoning_effort"),
    ],
)
def test_what_cant_be_honoured_is_refused(live: LiveServer, fields: dict[str, Any], about: str) -> None:
    for stream in (False, True):
        status, kind, message = error_of(ask(live, stream=stream, **fields))
        assert (status, kind) == (400, "invalid_request_error") and about in message


def test_fields_of_others_are_ignored_and_named(live: LiveServer) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "x", "odd": 1}], "name": "ada"}
    answer = ask(live, messages=[message], wibble=1, speed="standard", mcp_servers=[])
    assert answer.headers["x-myllm-ignored"] == "messages.content.odd, messages.name, wibble"


def test_errors_have_the_types_of_this_dialect(live: LiveServer, start: StartServer) -> None:
    assert error_of(ask(live, model="nope"))[:2] == (404, "not_found_error")
    assert error_of(ask(live, model="../etc"))[:2] == (404, "not_found_error")
    assert error_of(live.get("/v1/messages"))[:2] == (405, "invalid_request_error")
    assert error_of(live.post("/v1/messages/nowhere", {}))[:2] == (404, "not_found_error")
    assert error_of(live.post("/v1/messages", raw=b"{"))[:2] == (400, "invalid_request_error")
    headers = {"content-type": "text/plain"}
    assert error_of(live.post("/v1/messages", raw=b"{}", headers=headers))[:2] == (415, "invalid_request_error")
    headers = {"origin": "http://evil.example"}
    assert error_of(live.post("/v1/messages", {}, headers=headers))[:2] == (403, "permission_error")
    with start(api_key="k3y", max_body_bytes=2000) as server:
        assert error_of(ask(server))[:2] == (401, "authentication_error")
        key = {"x-api-key": "k3y"}
        body = {"model": "echo", "max_tokens": 9, "messages": user("hi")}
        assert server.post("/v1/messages", body, headers=key).status == 200
        large = {**body, "messages": user("x" * 3000)}
        assert error_of(server.post("/v1/messages", large, headers=key))[:2] == (413, "request_too_large")
    with start(rate_limit=1) as server:
        assert ask(server).status == 200
        answer = ask(server)
        assert error_of(answer)[:2] == (429, "rate_limit_error") and int(answer.headers["retry-after"]) > 0


def test_a_busy_server_says_so_as_anthropic_does(start: StartServer) -> None:
    with start(max_requests=1) as server, server.send_chat(LONG, model="slow") as connection:
        read_until(connection, b"w1")
        answer = ask(server)
        assert error_of(answer)[:2] == (529, "overloaded_error") and answer.headers["retry-after"] == "1"


def test_a_fault_before_the_first_word_has_a_status(told: LiveServer) -> None:
    for stream in (False, True):
        answer = tell(told, ("raise", "the wires melted"), stream=stream)
        assert error_of(answer) == (500, "api_error", "the wires melted")


@pytest.mark.parametrize("fault", [("raise", "the wires melted"), ("finish", "cancelled")])
def test_a_fault_in_mid_stream_is_an_error_event(told: LiveServer, fault: tuple[str, str]) -> None:
    answer = tell(told, ("text", "well"), fault, stream=True)
    *_, delta, last = events_of(answer)
    assert delta["delta"]["text"] == "well"
    assert last["type"] == "error" and last["error"]["type"] == "api_error"
    assert last["request_id"] == answer.headers["request-id"]
    assert error_of(tell(told, ("text", "well"), fault))[:2] == (500, "api_error")


def test_arguments_that_are_no_object_are_an_error(told: LiveServer) -> None:
    status, kind, message = error_of(tell(told, ("call", (0, "c1", "add", "[1")), ("finish", "tool_calls")))
    assert (status, kind) == (500, "api_error") and "add" in message


def test_progress_is_told_by_comments(told: LiveServer) -> None:
    body = tell(told, ("text", "a"), ("progress", "prompt"), ("sleep", 1.3), ("text", "b"), END, stream=True).body
    assert b": reading the prompt\n\n" in body


def test_a_silent_stream_pings(tmp_path: Any) -> None:
    install_echo(tmp_path / "models", load_options={"delay_ms": 700})
    with live_server(tmp_path, ping_interval=0.2) as server:
        answer = ask(server, "a b", stream=True)
    body = b"".join(frame + b"\n\n" for frame in answer.body.split(b"\n\n")[:-1] if not frame.startswith(b":"))
    kinds = [event["type"] for event in events_of(Answer(answer.status, answer.headers, body))]
    assert kinds.count("ping") >= 2 and [kind for kind in kinds if kind != "ping"][0] == "message_start"


def test_going_away_ends_the_generation(live: LiveServer) -> None:
    for stream in (True, False):
        body = {"model": "slow", "max_tokens": 400, "messages": user(LONG), "stream": stream}
        content = json.dumps(body).encode()
        with live.connect() as connection:
            head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
            eventually(lambda: live.running() == 1)
        eventually(lambda: live.running() == 0, 3)


def test_models_of_two_dialects_share_a_path(start: StartServer, tmp_path: Any) -> None:
    for name in ("a:1", "b:1", "c:1"):
        install_echo(tmp_path / "models", name, pulled_at="2026-01-02T03:04:05+01:00")
    ours = {"anthropic-version": "2023-06-01"}
    with start(models_dir=tmp_path / "models") as server:
        page = server.get("/v1/models?limit=2", headers=ours).json
        first = {"type": "model", "id": "a:1", "display_name": "a:1", "created_at": "2026-01-02T02:04:05Z"}
        assert page["data"][0] == first and page["has_more"] is True
        assert (page["first_id"], page["last_id"]) == ("a:1", "b:1")
        rest = server.get("/v1/models?after_id=b:1", headers=ours).json
        assert [model["id"] for model in rest["data"]] == ["c:1"] and rest["has_more"] is False
        before = server.get("/v1/models?before_id=c:1&limit=1", headers=ours).json
        assert [model["id"] for model in before["data"]] == ["b:1"] and before["has_more"] is True
        assert error_of(server.get("/v1/models?after_id=z", headers=ours))[:2] == (400, "invalid_request_error")
        assert server.get("/v1/models/b", headers=ours).json["id"] == "b:1"
        assert error_of(server.get("/v1/models/z", headers=ours))[:2] == (404, "not_found_error")
        assert server.get("/v1/models").json["object"] == "list"
        assert "param" in server.get("/v1/models/z").json["error"]


def test_tokens_that_cant_be_counted(live: LiveServer) -> None:
    answer = live.post("/v1/messages/count_tokens", {"model": "echo", "messages": user("x")})
    assert error_of(answer)[:2] == (400, "invalid_request_error")
