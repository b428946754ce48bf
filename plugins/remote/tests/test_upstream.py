"""What a server may do to us: cut, refuse, babble, be silent, be gone; and what is sent to it."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from myllm_remote.engine import RemoteEngine

from myllm_core import (
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    Message,
    Progress,
    ReasoningDelta,
    Sampling,
    TextDelta,
    ToolCall,
    ToolCallDelta,
)
from myllm_core.errors import (
    ConfigError,
    ContextLengthError,
    DeadlineExceeded,
    EngineError,
    IntegrityError,
    InvalidOption,
    InvalidRequest,
    MyllmError,
    NetworkError,
    Overloaded,
    UnsupportedError,
)
from myllm_core.types import Grammar, Tool, Tools
from support.server import LiveServer, eventually
from support.wild_server import Exchange, WildServer

from .conftest import MakeModel, OpenEngine, Wild, said, sse

ASK = ChatRequest((Message("user", "hello"),), Sampling(temperature=0.5, seed=3), max_tokens=9)


def answer(engine: RemoteEngine, request: ChatRequest | CompletionRequest = ASK) -> list[Event]:
    events = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
    return [event for event in events if not isinstance(event, Progress)]


def finish(events: list[Event]) -> Finish:
    last = events[-1]
    assert isinstance(last, Finish)
    return last


def streams(*chunks: Any, done: bool = True) -> Any:
    def handle(exchange: Exchange) -> None:
        exchange.answer(sse(*chunks, done=done), Content_Type="text/event-stream")

    return handle


def refuses(status: int, document: Any, **headers: str) -> Any:
    def handle(exchange: Exchange) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        exchange.answer(body, status, Content_Type="application/json", **headers)

    return handle


def sent(server: Any) -> dict[str, Any]:
    return dict(json.loads(server.seen[-1].body))


def test_text_reasoning_usage_and_reason_come_through(wild_engine: Any) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    engine, server = wild_engine(
        streams(
            said(role="assistant", content=""), said(reasoning_content="hm"), said(reasoning=" so"), said("Hel"),
            said("lo"), said(finish="length"), {"choices": [], "usage": usage},
        )
    )  # fmt: skip
    events = answer(engine)
    assert events[:-1] == [ReasoningDelta("hm"), ReasoningDelta(" so"), TextDelta("Hel"), TextDelta("lo")]
    last = finish(events)
    assert (last.reason, last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (
        "length", 5, 2, 4,
    )  # fmt: skip
    body = sent(server)
    assert (body["model"], body["stream"], body["stream_options"]) == ("m", True, {"include_usage": True})
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 3, 9)
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert "top_k" not in body and "stop" not in body and "tools" not in body


def test_tool_calls_pass_through_both_ways(wild_engine: Any) -> None:
    def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        name = {"name": first.pop("name")} if "name" in first else {}
        return {"index": index, **first, "function": {**name, "arguments": arguments}}

    engine, server = wild_engine(
        streams(
            said(tool_calls=[call(0, "", id="a", name="add")]), said(tool_calls=[call(0, '{"x":')]),
            said(tool_calls=[call(0, "1}"), call(1, "{}", id="b", name="now")]), said(finish="tool_calls"),
        )
    )  # fmt: skip
    messages = (
        Message("user", "1+1?"), Message("assistant", "", "hm", (ToolCall("c", "add", "{}"),)),
        Message("tool", "2", tool_call_id="c"), Message("user", "more"),
    )  # fmt: skip
    tools = Tools((Tool("add", "adds", {"type": "object"}, True), Tool("now")), "required", "add", parallel=False)
    events = answer(engine, ChatRequest(messages, tools=tools))
    assert events[:-1] == [
        ToolCallDelta(0, "a", "add", ""), ToolCallDelta(0, arguments='{"x":'), ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "b", "now", "{}"),
    ]  # fmt: skip
    assert finish(events).reason == "tool_calls"
    body = sent(server)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["tools"][0]["function"] == {
        "name": "add", "description": "adds", "parameters": {"type": "object"}, "strict": True,
    }  # fmt: skip
    assert body["parallel_tool_calls"] is False
    assert body["messages"][1]["content"] is None and body["messages"][1]["tool_calls"][0]["id"] == "c"
    assert "reasoning_content" not in body["messages"][1] and body["messages"][2]["tool_call_id"] == "c"


def test_log_probabilities_of_both_shapes(wild_engine: Any) -> None:
    entry = {"token": "é", "bytes": [195, 169], "logprob": -0.5}
    chunk = said("é")
    chunk["choices"][0]["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
    engine, server = wild_engine(streams(chunk, said(finish="stop")))
    [delta, _] = answer(engine, ChatRequest(ASK.messages, logprobs=1))
    assert isinstance(delta, TextDelta) and delta.logprobs[0].chosen.bytes == "é".encode()
    assert delta.logprobs[0].top[0].logprob == -0.5 and sent(server)["top_logprobs"] == 1

    legacy = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -2.0, "a": -1.0}]}
    engine, server = wild_engine(streams({"choices": [{"text": "a", "logprobs": legacy, "finish_reason": "stop"}]}))
    [delta, _] = answer(engine, CompletionRequest("x", max_tokens=1, logprobs=2))
    assert isinstance(delta, TextDelta) and [top.token for top in delta.logprobs[0].top] == ["a", "b"]


def test_options_go_by_the_names_of_the_server(wild_engine: Any) -> None:
    handler = streams(said("x", "stop"))
    engine, server = wild_engine(handler, "myllm")
    answer(engine, ChatRequest(ASK.messages, Sampling(top_k=7, repeat_penalty=1.5), grammar=Grammar("regex", "a+")))
    assert "top_p" not in sent(server) and sent(server)["temperature"] == 0.7
    assert (sent(server)["top_k"], sent(server)["repeat_penalty"], sent(server)["regex"]) == (7, 1.5, "a+")
    engine, server = wild_engine(handler, "sglang")
    answer(engine, ChatRequest(ASK.messages, Sampling(top_k=0), grammar=Grammar("json_schema", '{"type":"object"}')))
    assert sent(server)["top_k"] == -1
    assert sent(server)["response_format"]["json_schema"]["schema"] == {"type": "object"}
    with pytest.raises(UnsupportedError, match="regex"):
        answer(engine, ChatRequest(ASK.messages, grammar=Grammar("regex", "a+")))
    engine, server = wild_engine(handler, "openai")
    answer(engine)
    assert sent(server)["max_completion_tokens"] == 9 and "max_tokens" not in sent(server)


def test_a_raw_prompt_without_limit_is_refused_where_it_would_be_cut(wild_engine: Any) -> None:
    engine, _ = wild_engine(streams({"choices": [{"text": "y", "finish_reason": "stop"}]}))
    with pytest.raises(UnsupportedError, match="max_tokens"):
        answer(engine, CompletionRequest("x"))
    engine, server = wild_engine(streams({"choices": [{"text": "y", "finish_reason": "stop"}]}), "vllm")
    assert answer(engine, CompletionRequest("x"))[0] == TextDelta("y")
    assert sent(server)["max_tokens"] is None


@pytest.mark.parametrize(
    ("status", "document", "kind", "said_by_it"),
    [
        (400, {"error": {"message": "bad thing", "code": "x"}}, InvalidRequest, "bad thing"),
        (400, {"error": {"message": "n", "code": "unsupported"}}, UnsupportedError, "n"),
        (422, {"detail": [{"msg": "no such field"}]}, InvalidRequest, "no such field"),
        (401, {"error": "who are you"}, ConfigError, "who are you"),
        (404, {"message": "The model `m` does not exist.", "object": "error"}, EngineError, "does not exist"),
        (408, b"", DeadlineExceeded, "status 408"),
        (429, {"error": {"message": "slow down"}}, Overloaded, "slow down"),
        (500, b"<html>oops</html>", EngineError, "status 500"),
        (500, b"out of memory", EngineError, "out of memory"),
        (501, b"{}", UnsupportedError, "status 501"),
        (503, {"error": {"message": "queue full"}}, Overloaded, "queue full"),
        (504, {"error": {"message": "took too long"}}, DeadlineExceeded, "took too long"),
        (307, b"", NetworkError, "leads elsewhere"),
    ],
)  # fmt: skip
def test_a_refusal_keeps_its_words(
    wild_engine: Any, status: int, document: Any, kind: type[MyllmError], said_by_it: str
) -> None:
    engine, server = wild_engine(refuses(status, document, Location="http://127.0.0.1:1/", Retry_After="7"))
    with pytest.raises(MyllmError) as caught:
        answer(engine)
    error = caught.value
    assert type(error) is kind and said_by_it in error.message and "127.0.0.1" in error.message
    assert kind is not Overloaded or error.data["retry_after"] == 7
    assert sum(not seen.target.endswith("/models") for seen in server.seen) == 1, "it was sent twice"


def test_a_prompt_that_is_too_long_has_both_numbers(wild_engine: Any) -> None:
    words = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
    engine, _ = wild_engine(refuses(400, {"error": {"message": words, "code": 400}}))
    with pytest.raises(ContextLengthError) as caught:
        answer(engine)
    assert caught.value.data == {"context_size": 4096, "prompt_tokens": 5000}


def test_a_cut_stream_keeps_what_came_and_says_so(wild_engine: Any) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.head(Content_Type="text/event-stream", Content_Length=100_000)
        exchange.send(sse(said("half a"), done=False))

    events = answer(wild_engine(cut)[0])
    assert events[0] == TextDelta("half a")
    assert finish(events).reason == "error" and isinstance(finish(events).error, NetworkError)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data: {not json}\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n',
        b"\x00\xff" * 50,
    ],
)
def test_garbage_is_an_error_before_anything_was_said(wild_engine: Any, body: bytes) -> None:
    engine, _ = wild_engine(lambda exchange: exchange.answer(body, Content_Type="text/event-stream"))
    with pytest.raises((EngineError, NetworkError)):
        answer(engine)


def test_what_is_no_http_is_an_error(wild_engine: Any) -> None:
    engine, _ = wild_engine(lambda exchange: exchange.send(b"SSH-2.0-OpenSSH\r\n\r\n"))
    with pytest.raises(NetworkError, match="HTTP"):
        answer(engine)


def test_an_error_in_the_stream_or_instead_of_it(wild_engine: Any) -> None:
    engine, _ = wild_engine(streams(said("a"), {"error": {"message": "the GPU fell off"}}, done=False))
    assert "the GPU fell off" in str(finish(answer(engine)).error)
    engine, _ = wild_engine(refuses(200, {"error": {"message": "no stream for you"}}))
    with pytest.raises(EngineError, match="no stream for you"):
        answer(engine)
    engine, _ = wild_engine(streams(said("a"), said(finish="content_filter")))
    assert "content filter" in str(finish(answer(engine)).error)


def test_a_line_without_end_is_given_up(wild_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("myllm_remote.replies._MAX_LINE", 10_000)
    engine, _ = wild_engine(
        lambda exchange: exchange.answer(b"data: " + b"x" * 50_000, Content_Type="text/event-stream")
    )
    with pytest.raises(NetworkError, match="line"):
        answer(engine)


def test_a_rude_end_after_the_reason_is_forgiven(wild_engine: Any) -> None:
    def rude(exchange: Exchange) -> None:
        exchange.head(Content_Type="text/event-stream", Content_Length=100_000)
        exchange.send(sse(said("whole"), said(finish="stop"), done=False))

    assert finish(answer(wild_engine(rude)[0])).reason == "stop"


def test_silence_is_told_and_ends_at_last(wild_engine: Any) -> None:
    engine, _ = wild_engine(lambda exchange: exchange.wait(30), load={"stall_timeout": 1.2})
    events = engine.chat(ASK)
    assert next(events) == Progress("prompt")
    with pytest.raises(NetworkError, match="silent"):
        list(events)


def test_going_away_closes_the_connection(wild_engine: Any) -> None:
    gone = []

    def endless(exchange: Exchange) -> None:
        exchange.head(Content_Type="text/event-stream")
        try:
            while not exchange.server.stopped.wait(0.01):
                exchange.send(sse(said("on and on "), done=False))
        except OSError:
            gone.append(time.monotonic())

    engine, _ = wild_engine(endless)
    events = engine.chat(ASK)
    assert isinstance(next(event for event in events if isinstance(event, TextDelta)), TextDelta)
    events.close()  # type: ignore[attr-defined]
    eventually(lambda: gone, seconds=10)


def test_a_cancelled_request_ends_on_the_other_side_too(upstream: LiveServer, open_engine: OpenEngine) -> None:
    engine = open_engine(f"http://127.0.0.1:{upstream.port}/v1", model="slow:latest")
    words = " ".join(["word"] * 400)  # 20 s
    events = engine.chat(ChatRequest((Message("user", words),)))
    next(event for event in events if isinstance(event, TextDelta))
    assert upstream.running() == 1
    events.close()  # type: ignore[attr-defined]
    eventually(lambda: upstream.running() == 0, seconds=10)


def test_a_key_goes_to_its_server_and_into_no_message(
    wild: Wild, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [wild(refuses(400, {"error": {"message": "sk-secret is no good"}})) for _ in range(2)]
    monkeypatch.setenv(f"MYLLM_REMOTE_KEY_127_0_0_1_{servers[0].port}", "sk-secret")
    for server in servers:
        with pytest.raises(InvalidRequest) as caught:
            answer(open_engine(server.url("/v1"), model="m", dialect="other"))
        assert ("sk-secret" in caught.value.message) == (server is servers[1])
    assert {seen.headers.get("authorization") for seen in servers[0].seen} == {"Bearer sk-secret"}
    assert {seen.headers.get("authorization") for seen in servers[1].seen} == {None}


def test_a_key_by_the_name_of_a_variable(wild: Wild, open_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server = wild(streams(said("x", "stop")))
    with pytest.raises(ConfigError, match="MY_KEY"):
        open_engine(server.url("/v1"), load={"api_key_env": "MY_KEY"})
    monkeypatch.setenv("MY_KEY", "k1")
    answer(open_engine(server.url("/v1"), load={"api_key_env": "MY_KEY"}))
    assert server.seen[-1].headers["authorization"] == "Bearer k1"
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(ConfigError):
        open_engine(server.url("/v1"), load={"api_key_env": "MY_KEY"})


def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_when_no_server_answers_loading_says_so(open_engine: OpenEngine) -> None:
    with pytest.raises(NetworkError, match="no server of this model"):
        open_engine(unused_url(), unused_url())


def test_a_server_that_is_gone_is_left_out(wild: Wild, open_engine: OpenEngine) -> None:
    handler = streams(said("x", "stop"))
    first, second = wild(handler), wild(handler)
    engine = open_engine(first.url("/v1"), second.url("/v1"), load={"health_interval": 0.2}, model="m", dialect="other")
    first.__exit__()
    for _ in range(4):
        assert finish(answer(engine)).reason == "stop"
    assert sum(seen.method == "POST" for seen in second.seen) == 4
    second.__exit__()
    with pytest.raises(NetworkError, match="can't be reached"):
        answer(engine)


def test_a_server_that_is_well_again_is_asked_again(wild: Wild, open_engine: OpenEngine) -> None:
    well = False

    def recovering(exchange: Exchange) -> None:
        if exchange.method == "POST":
            streams(said("x", "stop"))(exchange)
        else:
            exchange.answer(b'{"data": [{"id": "m"}]}' if well else b"<html>starting</html>")

    with WildServer(recovering) as first:
        second = wild(streams(said("x", "stop")))
        urls = first.url("/v1"), second.url("/v1")
        engine = open_engine(*urls, load={"health_interval": 0.2}, model="m", dialect="other")
        for _ in range(3):
            answer(engine)
        assert not any(seen.method == "POST" for seen in first.seen)
        well = True

        def asked() -> bool:
            answer(engine)
            return any(seen.method == "POST" for seen in first.seen)

        eventually(asked, seconds=20, every=0.1)
        engine.close()


def test_the_least_busy_server_is_asked(wild: Wild, open_engine: OpenEngine) -> None:
    def slow(exchange: Exchange) -> None:
        exchange.head(Content_Type="text/event-stream")
        exchange.send(sse(said("x"), done=False))
        exchange.wait(20)

    servers = [wild(slow) for _ in range(3)]
    engine = open_engine(*(server.url("/v1") for server in servers), model="m", dialect="other")
    running = [engine.chat(ASK) for _ in range(6)]
    for events in running:
        next(event for event in events if isinstance(event, TextDelta))
    posts = [sum(seen.method == "POST" for seen in server.seen) for server in servers]
    assert posts == [2, 2, 2]
    for events in running:
        events.close()  # type: ignore[attr-defined]


def test_a_request_that_was_sent_is_never_sent_again(wild: Wild, open_engine: OpenEngine) -> None:
    servers = [wild(lambda exchange: None) for _ in range(2)]  # take the request, hang up
    engine = open_engine(*(server.url("/v1") for server in servers), model="m", dialect="other")
    with pytest.raises(NetworkError):
        answer(engine)
    assert sum(seen.method == "POST" for server in servers for seen in server.seen) == 1


def test_embeddings(wild_engine: Any, upstream: LiveServer, open_engine: OpenEngine) -> None:
    engine = open_engine(f"http://127.0.0.1:{upstream.port}/v1")
    made = engine.embed(["a", "bcd"])
    assert made.vectors == [[1.0, 1.0], [3.0, 1.0]] and made.prompt_tokens == 2
    for data in ([], [{"index": 0, "embedding": [1.0]}], [{"index": 0, "embedding": [float("nan")]}] * 2, 5):
        engine, _ = wild_engine(refuses(200, {"data": data}))
        with pytest.raises(EngineError):
            engine.embed(["a", "b"])
    engine, _ = wild_engine(refuses(404, {"detail": "Not Found"}))
    with pytest.raises(UnsupportedError):
        engine.embed(["a"])


def test_what_is_claimed_can_be_set(upstream: LiveServer, open_engine: OpenEngine) -> None:
    engine = open_engine(f"http://127.0.0.1:{upstream.port}/v1", load={"capabilities": "chat"})
    assert engine.facts.capabilities == {"chat"}
    with pytest.raises(UnsupportedError):
        engine.embed(["a"])
    with pytest.raises(InvalidOption, match="sing"):
        open_engine(f"http://127.0.0.1:{upstream.port}/v1", load={"capabilities": "sing"})


def test_a_file_that_pull_did_not_write_is_refused(make_model: MakeModel) -> None:
    model = make_model("http://127.0.0.1:1/v1")
    for text in (
        b"{}",
        b"[]",
        b"\xff",
        b'{"schema":1,"model":"m","upstreams":["ftp://x"],"dialect":"vllm","context_size":0}',
    ):
        model.paths[0].write_bytes(text)
        assert RemoteEngine.probe(model).score == 0
        with pytest.raises(IntegrityError):
            RemoteEngine.load(model, {}, lambda fraction: None)
