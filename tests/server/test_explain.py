"""`GET /api/models/{name}/explain`, and that every answer names its engine."""

from __future__ import annotations

import pytest

from myllm_core import __version__
from support.server import LiveServer

MESSAGES = [{"role": "user", "content": "one two"}]


def test_a_model_is_explained(live: LiveServer) -> None:
    found = live.get("/api/models/echo/explain").json
    assert (found["model"], found["engine"]) == ("echo:latest", "echo")
    [chosen] = [one for one in found["engines"] if one["chosen"]]
    assert chosen["score"] == 100 and chosen["memory"] > 0 and chosen["install"] is None
    assert live.get("/api/models/nobody/explain").code == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": MESSAGES, "stream": False}),
        ("/api/generate", {"prompt": "one two", "stream": False}),
        ("/api/embeddings", {"input": "one"}),
    ],
)
def test_native_answers_name_the_engine(live: LiveServer, path: str, body: dict[str, object]) -> None:
    assert live.post(path, {"model": "echo", **body}).json["engine"] == "echo"


def test_the_last_event_of_a_stream_names_the_engine(live: LiveServer) -> None:
    assert live.post("/api/chat", {"model": "echo", "messages": MESSAGES}).frames[-1]["engine"] == "echo"


def test_openai_answers_name_it_in_their_fingerprint(live: LiveServer) -> None:
    made_by = f"myllm-{__version__}-echo"
    whole = live.post("/v1/chat/completions", {"model": "echo", "messages": MESSAGES}).json
    assert whole["system_fingerprint"] == made_by
    raw = live.post("/v1/chat/completions", {"model": "echo", "messages": MESSAGES, "stream": True}).body
    assert raw.count(made_by.encode()) == raw.count(b"data: {")
    assert live.post("/v1/completions", {"model": "echo", "prompt": "x"}).json["system_fingerprint"] == made_by


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}),
        ("/v1/responses", {"input": "one two"}),
        ("/v1/embeddings", {"input": "one"}),
        ("/v1/rerank", {"query": "one", "documents": ["one two"]}),
        ("/ollama/api/chat", {"messages": MESSAGES}),
        ("/ollama/api/generate", {"prompt": "one two"}),
        ("/ollama/api/embed", {"input": "one"}),
        ("/ollama/api/embeddings", {"prompt": "one"}),
    ],
)
def test_answers_without_a_place_for_it_have_a_header(
    live: LiveServer, path: str, body: dict[str, object], stream: bool
) -> None:
    streams = {} if "embed" in path or "rerank" in path else {"stream": stream}
    answer = live.post(path, {"model": "echo", **body, **streams})
    assert (answer.status, answer.headers["x-myllm-engine"]) == (200, "echo"), answer.body


def test_a_model_without_an_engine_is_refused_as_ever(live: LiveServer) -> None:
    assert live.post("/v1/messages", {"model": "nobody", "messages": MESSAGES, "max_tokens": 9}).status == 404


def test_loaded_models_have_their_engine(live: LiveServer) -> None:
    live.chat("hello")
    assert {entry["engine"] for entry in live.get("/api/ps").json["models"]} == {"echo"}
