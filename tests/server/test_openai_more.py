"""`/v1/completions`, `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any

import pytest

from myllm_core import __version__
from support.server import Answer, LiveServer, StartServer, install_echo


def complete(live: LiveServer, prompt: Any = "one two", **fields: Any) -> Answer:
    return live.post("/v1/completions", {"model": "echo", "prompt": prompt, **fields})


def embed(live: LiveServer, given: Any, **fields: Any) -> Answer:
    return live.post("/v1/embeddings", {"model": "echo", "input": given, **fields})


def test_a_completion(live: LiveServer) -> None:
    body = complete(live).json
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", body.pop("id")) and body.pop("created") > 1_700_000_000
    assert body == {
        "object": "text_completion",
        "model": "echo",
        "system_fingerprint": f"myllm-{__version__}-echo",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_the_default_length_is_the_dialects(live: LiveServer) -> None:
    choice = complete(live, " ".join("abcdefghijklmnopqrstuvwxyz")).json["choices"][0]
    assert (len(choice["text"].split()), choice["finish_reason"]) == (16, "length")


def test_several_prompts_and_answers(live: LiveServer) -> None:
    body = complete(live, ["a b", "c d e"], n=2).json
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "a b"), (1, "a b"), (2, "c d e"), (3, "c d e")]
    assert body["usage"]["prompt_tokens"] == 5 and body["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_of_completions(live: LiveServer, echo: bool) -> None:
    prompts = ["a b", "c d e"]
    answer = complete(live, prompts, stream=True, echo=echo, stream_options={"include_usage": True})
    frames = answer.body.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    *chunks, last = [json.loads(frame[6:]) for frame in frames[:-2]]
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, last]}) == 1
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks)
    for index, prompt in enumerate(prompts):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in own) == prompt * (2 if echo else 1)
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
    assert complete(live, prompts, echo=echo).json["choices"][1]["text"] == "c d e" * (2 if echo else 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[True]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 0}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_completions_that_cannot_be(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = complete(live, **({"prompt": "x"} | fields))
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body


def test_tokens_need_an_engine_that_has_some(live: LiveServer) -> None:
    for answer in (complete(live, [1, 2]), complete(live, [[1], [2]]), embed(live, [1, 2]), embed(live, [[1, 2]])):
        assert (answer.status, answer.json["error"]["code"]) == (400, "unsupported")


def test_completions_ignore_what_openai_has_not(live: LiveServer) -> None:
    answer = complete(live, suffix="", best_of=1, foo=1)
    assert answer.status == 200 and answer.headers["x-myllm-ignored"] == "foo"


def test_embeddings_as_floats_and_packed(live: LiveServer) -> None:
    body = embed(live, ["abc", "d"]).json
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [3.0, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 1.0]},
        ],
        "model": "echo",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    assert embed(live, "abc", encoding_format="float").json["data"] == body["data"][:1]
    packed = embed(live, "abc", encoding_format="base64", dimensions=2, user="u").json["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (3.0, 1.0)
    assert embed(live, "abc", foo=1).headers["x-myllm-ignored"] == "foo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [1, 2.5]}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 3}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_embeddings_that_cannot_be(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = embed(live, **({"given": "x"} | {("given" if k == "input" else k): v for k, v in fields.items()}))
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body


def rerank(live: LiveServer, **fields: Any) -> Answer:
    return live.post("/v1/rerank", {"model": "echo", "query": "abc", "documents": ["a", "abcd", "abc"]} | fields)


def test_documents_in_the_order_of_their_likeness(live: LiveServer) -> None:
    body = rerank(live).json  # the echo engine's vectors are (length, 1)
    assert [result["index"] for result in body["results"]] == [2, 1, 0] and body["scored_by"] == "embeddings"
    assert body["results"][0]["relevance_score"] == pytest.approx(1) and body["usage"]["total_tokens"] == 4
    assert body["results"][1].keys() == {"index", "relevance_score"}
    mixed = [{"text": "abcd"}, "abc"]
    best = rerank(live, documents=mixed, query={"text": "abc"}, top_n=1, return_documents=True).json["results"]
    assert best == [{"index": 1, "relevance_score": pytest.approx(1), "document": {"text": "abc"}}]
    assert rerank(live, foo=1, top_n=99).headers["x-myllm-ignored"] == "foo"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"title": "x"}]}, "documents[1]"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ],
)
def test_reranking_that_cannot_be(live: LiveServer, fields: dict[str, Any], param: str) -> None:
    answer = rerank(live, **fields)
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.body
    assert "{{" not in answer.json["error"]["message"]


def test_models(start: StartServer, tmp_path: Any) -> None:
    models = tmp_path / "models"
    install_echo(models)
    install_echo(models, "other:1b", aliases=("its-alias",), pulled_at="2026-01-01T12:00:00+00:00")
    entry = {"id": "other:1b", "object": "model", "created": 1767268800, "owned_by": "myllm"}
    with start(models_dir=models) as server:
        listed = server.get("/v1/models").json
        assert listed == {"object": "list", "data": [entry | {"id": "echo:latest", "created": 0}, entry]}
        for name in ("other:1b", "other", "its-alias"):
            assert server.get(f"/v1/models/{name}").json == entry
        chat = {"model": "its-alias", "messages": [{"role": "user", "content": "hi"}]}
        assert server.post("/v1/chat/completions", chat).json["model"] == "its-alias"
