"""Tokens and prompts over HTTP, of the real model; and engines that show none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.server import LiveServer, live_server
from support.smollm2 import install_smollm2

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: object) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("real")
    install_smollm2(home / "models", smollm2_gguf)  # type: ignore[arg-type]
    with live_server(home, isolation="process") as server:
        yield server


@pytest.mark.model
def test_tokens_there_and_back(real: LiveServer) -> None:
    body = {"model": "smollm2", "text": "naïve café <|im_start|>"}
    plain = real.post("/api/tokenize", body).json
    assert plain["count"] == len(plain["tokens"]) and plain["model"] == "smollm2"
    assert real.post("/api/detokenize", {"model": "smollm2", "tokens": plain["tokens"]}).json["text"] == body["text"]
    special = real.post("/api/tokenize", {**body, "special": True}).json
    assert special["count"] < plain["count"]


@pytest.mark.model
def test_a_count_is_what_the_usage_will_be(real: LiveServer) -> None:
    tools = [{"name": "add", "description": "Adds", "parameters": {"type": "object"}}]
    for more in ({}, {"tools": tools}):
        counted = real.post("/api/count", {"model": "smollm2", "messages": TALK, **more}).json
        body = {"model": "smollm2", "messages": TALK, "stream": False, "options": {"max_tokens": 1}, **more}
        assert counted["prompt_tokens"] == real.post("/api/chat", body).json["usage"]["prompt_tokens"]
        assert counted["fits"] is True
    raw = real.post("/api/count", {"model": "smollm2", "prompt": "Once upon a time"}).json
    body = {"model": "smollm2", "prompt": "Once upon a time", "stream": False, "options": {"max_tokens": 1}}
    assert raw["prompt_tokens"] == real.post("/api/generate", body).json["usage"]["prompt_tokens"]
    long = real.post(
        "/api/count", {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 20_000}]}
    ).json
    assert long["fits"] is False and long["prompt_tokens"] > long["context_size"]


@pytest.mark.model
def test_the_prompt_of_a_conversation(real: LiveServer) -> None:
    made = real.post("/api/apply-template", {"model": "smollm2", "messages": TALK}).json
    assert made["prompt"].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    counted = real.post("/api/count", {"model": "smollm2", "messages": TALK}).json
    assert len(made["tokens"]) == counted["prompt_tokens"]


@pytest.mark.model
def test_anthropic_counts_the_same(real: LiveServer) -> None:
    body = {"model": "smollm2", "system": "Be brief.", "messages": TALK[1:]}
    counted = real.post("/v1/messages/count_tokens", body)
    same = real.post("/api/count", {"model": "smollm2", "messages": TALK}).json["prompt_tokens"]
    assert counted.json == {"input_tokens": same}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("tokenize", {"text": "x"}, 400),
        ("detokenize", {"tokens": [1]}, 400),
        ("count", {"prompt": "x"}, 400),
        ("apply-template", {"messages": TALK}, 400),
        ("count", {"messages": TALK, "prompt": "x"}, 422),
        ("count", {}, 422),
        ("tokenize", {"text": 5}, 422),
        ("detokenize", {"tokens": ["x"]}, 422),
        ("detokenize", {"tokens": [True]}, 422),
        ("tokenize", {"text": "x", "odd": 1}, 422),
    ],
)
def test_what_cant_be_told(live: LiveServer, path: str, body: dict[str, object], status: int) -> None:
    answer = live.post(f"/api/{path}", {"model": "echo", **body})
    assert answer.status == status
    assert answer.code == ("unsupported" if status == 400 else "unknown_field" if "odd" in body else "invalid_request")
    assert live.post(f"/api/{path}", {"model": "nope", **body}).status in (404, 422)
