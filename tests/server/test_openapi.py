"""`/docs`: complete, usable without a network, with examples that work as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from myllm_core.options import Options
from support.server import LiveServer, StartServer, install_echo

TOKENS = {
    "/v1/messages/count_tokens",
    "/api/tokenize",
    "/api/detokenize",
    "/api/count",
    "/api/apply-template",
}  # the echo engine doesn't show any
STREAMED = {"/api/chat", "/api/generate", "/ollama/api/chat", "/ollama/api/generate", "/ollama/api/pull"}  # unless not
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(live: LiveServer) -> dict[str, Any]:
    return dict(live.get("/openapi.json").json)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def test_every_route_of_the_design_is_there(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} >= {
        ("post", "/api/chat"),
        ("get", "/api/chat"),
        ("post", "/api/generate"),
        ("post", "/api/embeddings"),
        ("get", "/api/models"),
        ("get", "/api/models/{name}"),
        ("post", "/api/models/{name}/load"),
        ("post", "/api/models/{name}/unload"),
        ("get", "/api/ps"),
        ("get", "/api/sessions"),
        ("get", "/api/sessions/{session_id}"),
        ("delete", "/api/sessions/{session_id}"),
        ("get", "/health"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
        ("delete", "/v1/responses/{response_id}"),
    }


def test_every_operation_is_described_with_examples(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        if not path.startswith(("/api/", "/v1/", "/ollama/api/")):
            continue
        where = f"{method} {path}"
        assert operation["description"].strip(), where
        assert operation["tags"], where
        answers = operation["responses"]
        assert all("example" in content for content in answers["200"].get("content", {}).values()), where
        assert {"404", "4XX", "5XX"} <= answers.keys(), where
        assert ("422" in answers) == path.startswith("/api/"), where  # the dialects have 400 for it
        assert "HTTPValidationError" not in json.dumps(operation), where
        fields = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if "$ref" in fields.get("schema", {}):
            assert fields["examples"], where


def test_every_option_is_described(document: dict[str, Any]) -> None:
    described = document["components"]["schemas"]["Options"]["properties"]
    assert described.keys() == Options.model_fields.keys()
    assert all(option["description"] for option in described.values())


def test_every_example_works_as_it_stands(start: StartServer, document: dict[str, Any], tmp_path: Path) -> None:
    """With a model of the name that the examples use."""
    models = tmp_path / "models"
    install_echo(models, "smollm2:135m", options={})
    tried = 0
    with start(models_dir=models) as server:
        for method, path, operation in operations(document):
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in content.get("examples", {}).values():
                tried += 1
                if path in TOKENS:
                    continue
                answer = server.request(
                    method.upper(),
                    path.replace("{name}", "smollm2").replace("{session_id}", "my-first-session"),
                    example["value"],
                )
                streams = example["value"].get("stream", path in STREAMED)
                lines = "application/x-ndjson" if path.startswith("/ollama/") else "text/event-stream"
                expected = lines if streams else "application/json"
                assert answer.status == 200, (path, answer.body)
                if not operation["responses"]["200"].get("content"):
                    assert answer.body == b""
                    continue
                assert answer.headers["content-type"].startswith(expected)
                documented = operation["responses"]["200"]["content"][expected]["example"]
                if expected == "application/json":
                    # FastAPI leaves null out of examples
                    given = {name for name, value in answer.json.items() if value is not None}
                    sometimes = {"seed", "context", "pid"}  # the model runs in a thread here
                    assert given - sometimes == documented.keys() - sometimes
    assert tried > 14


def test_answers_look_as_documented(live: LiveServer, document: dict[str, Any]) -> None:
    session = live.chat("hello").json["session_id"]
    for path, got in (
        ("/api/models", live.get("/api/models")),
        ("/api/models/{name}", live.get("/api/models/echo")),
        ("/api/ps", live.get("/api/ps")),
        ("/api/sessions", live.get("/api/sessions")),
        ("/api/sessions/{session_id}", live.get(f"/api/sessions/{session}")),
    ):
        example = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        assert shape(got.json) == shape(example), path


def shape(value: Any) -> Any:
    """The keys of a document, of its lists' last entries only; what differs from call to call is left out."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key != "meta"}
    if isinstance(value, list):
        return [shape(value[-1])] if value else []
    return None


def test_docs_need_no_other_server(live: LiveServer) -> None:
    page = live.get("/docs")
    assert page.status == 200
    html = page.body.decode()
    assert re.findall(r'(?:src|href)="([^"]+)"', html) == ["data:,"] and "https:" not in html
    names = re.findall(r'"(swagger-ui[^"]*)"', html)
    assert names and all(live.get(f"/static-offline-docs/{name}").status == 200 for name in names)
