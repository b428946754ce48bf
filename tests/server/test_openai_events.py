"""What every kind of event, and every fault, looks like in the OpenAI dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.events import script, told_server
from support.server import Answer, LiveServer

END = ("finish", "stop")
TOP = [{"token": "Hi", "logprob": -0.25, "bytes": [72, 105]}, {"token": "?", "logprob": -9999.0, "bytes": [63]}]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with the model ``told``."""
    with told_server(tmp_path_factory.mktemp("told")) as server:
        yield server


def chat(told: LiveServer, *events: tuple[str, Any], **fields: Any) -> Answer:
    messages = [{"role": "user", "content": script(*events)}]
    return told.post("/v1/chat/completions", {"model": "told", "messages": messages, **fields})


def complete(told: LiveServer, *events: tuple[str, Any], **fields: Any) -> Answer:
    return told.post("/v1/completions", {"model": "told", "prompt": script(*events), **fields})


def choices(answer: Answer) -> list[dict[str, Any]]:
    """The first choice of each chunk; the last frame must be ``[DONE]``."""
    assert answer.status == 200, answer.body
    *frames, done, rest = answer.body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(frame[6:])["choices"][0] for frame in frames]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_reply_of_an_engine_that_would_write_on(told: LiveServer, stream: bool) -> None:
    events = [("reasoning", "a STOP"), ("text", "so far ST"), ("text", "O"), ("text", "P and on"), END]
    answer = chat(told, *events, stop=["OP", "STOP"], stream=stream)
    if stream:
        *_, written, last = choices(answer)
        assert (written["delta"], last["finish_reason"]) == ({"content": "so far "}, "stop")
    else:
        choice = answer.json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("so far ", "stop")
    assert chat(told, ("text", "ST"), ("text", "O"), END, stop="STOP").json["choices"][0]["message"]["content"] == "STO"


def test_reasoning_is_apart(told: LiveServer) -> None:
    events = [("reasoning", "h"), ("reasoning", "m"), ("text", "yes"), END]
    message = chat(told, *events).json["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "yes")
    assert [choice["delta"] for choice in choices(chat(told, *events, stream=True))] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "yes"},
        {},
    ]


def test_tool_calls(told: LiveServer) -> None:
    calls = [(0, "c1", "add", ""), (0, None, None, '{"a":'), (0, None, None, "1}"), (1, "c2", "stop", "{}")]
    events = [*(("call", call) for call in calls), ("finish", "tool_calls")]
    choice = chat(told, *events).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
    ]
    first, *pieces, last = choices(chat(told, *events, stream=True))
    assert first["delta"]["role"] == "assistant" and last["finish_reason"] == "tool_calls"
    assert [piece["delta"]["tool_calls"] for piece in pieces] == [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
        [{"index": 1, "id": "c2", "type": "function", "function": {"name": "stop", "arguments": "{}"}}],
    ]


def test_log_probabilities_of_chats(told: LiveServer) -> None:
    events = [("logprob", "Hi"), ("logprob", " é"), END]
    content = chat(told, *events, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"]
    assert content[0] == TOP[0] | {"top_logprobs": TOP}
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == "Hi é"
    streamed = choices(chat(told, *events, logprobs=True, top_logprobs=2, stream=True))
    assert [one for choice in streamed if choice["logprobs"] for one in choice["logprobs"]["content"]] == content
    assert chat(told, END, logprobs=True).json["choices"][0]["logprobs"] == {"content": [], "refusal": None}


def test_log_probabilities_of_completions(told: LiveServer) -> None:
    events = [("logprob", "Hi"), ("logprob", " é"), ("logprob", "!"), END]
    logprobs = complete(told, *events, logprobs=1).json["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Hi", " é", "!"] and logprobs["text_offset"] == [0, 2, 4]
    assert logprobs["token_logprobs"] == [-0.25] * 3
    assert logprobs["top_logprobs"][0] == {"Hi": -0.25, "?": -9999.0}
    streamed = [choice["logprobs"] for choice in choices(complete(told, *events, logprobs=1, stream=True))]
    joined = {name: [one for part in streamed if part for one in part[name]] for name in logprobs}
    assert joined == logprobs


def test_counts_are_the_engines(told: LiveServer) -> None:
    assert chat(told, END).json["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_progress_is_told_by_comments(told: LiveServer) -> None:
    events = [("text", "a"), ("progress", "prompt"), ("sleep", 1.3), ("text", "b"), END]
    body = chat(told, *events, stream=True).body.decode()
    assert '"content":"a"' in body.partition(": reading the prompt\n\n")[0]
    assert '"content":"b"' in body.partition(": reading the prompt\n\n")[2]
    assert chat(told, *events).json["choices"][0]["message"]["content"] == "ab"


def test_an_empty_answer_has_a_role_too(told: LiveServer) -> None:
    assert chat(told, END).json["choices"][0]["message"]["content"] == ""
    first, last = choices(chat(told, END, stream=True))
    assert first["delta"] == {"role": "assistant", "content": ""} and last["finish_reason"] == "stop"


@pytest.mark.parametrize("ask", [chat, complete])
def test_a_fault_before_the_first_word_has_a_status(told: LiveServer, ask: Any) -> None:
    for stream in (False, True):
        answer = ask(told, ("raise", "the wires melted"), stream=stream)
        error = answer.json["error"]
        assert (answer.status, error["type"], error["code"]) == (500, "server_error", "engine_error")
        assert error["message"] == "the wires melted" and error["param"] is None


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("fault", [("raise", "the wires melted"), ("finish", "cancelled")])
def test_a_fault_in_mid_stream_is_the_last_frame(told: LiveServer, ask: Any, n: int, fault: tuple[str, str]) -> None:
    answer = ask(told, ("text", "well"), fault, stream=True, n=n)
    assert answer.status == 200
    *frames, last, rest = answer.body.decode().split("\n\n")
    assert rest == "" and "[DONE]" not in answer.body.decode()
    assert "well" in "".join(frames)
    error = json.loads(last[6:])["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "server_error"
    assert told.running() == 0
    whole = ask(told, ("text", "well"), fault, n=n)
    assert (whole.status, whole.json["error"]["type"]) == (500, "server_error")


def test_each_answer_has_a_seed_of_its_own(told: LiveServer) -> None:
    def seeds(**fields: Any) -> list[str]:
        answer = chat(told, ("request", ""), END, n=3, **fields).json
        return [c["message"]["content"].partition("seed=")[2].partition(",")[0] for c in answer["choices"]]

    assert seeds(seed=7) == ["7", "8", "9"]
    assert seeds(seed=-2) == [str(2**32 - 2), str(2**32 - 1), "0"]
    assert len({*seeds(), *seeds()}) == 6


def test_what_reaches_the_engine(told: LiveServer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "user", "content": script(("request", ""), END)},
    ]
    body = {"model": "told", "messages": messages, "stop": "\nEND", "max_completion_tokens": 9, "logprobs": True}
    request = told.post("/v1/chat/completions", body).json["choices"][0]["message"]["content"]
    assert "Message(role='system', content='be kind'" in request
    assert "reasoning='hm', tool_calls=(ToolCall(id='c1', name='f', arguments='{}'),)" in request
    assert "Message(role='tool', content='4', reasoning='', tool_calls=(), tool_call_id='c1', images=())" in request
    assert "max_tokens=9, stop=('\\nEND',), logprobs=0, fit='error'" in request
    raw = complete(told, ("request", ""), END, stop=["\na", "\nb"]).json["choices"][0]["text"]
    assert "max_tokens=16, stop=('\\na', '\\nb'), logprobs=None" in raw
    assert "fit='drop'" in chat(told, ("request", ""), END, fit="drop").json["choices"][0]["message"]["content"]
