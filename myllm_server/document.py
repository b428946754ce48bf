"""The OpenAPI document: what FastAPI knows of the requests, and the shape of every answer.

An answer's schema is made from its example, so the two can't differ: what is in the example is always there, with a
value of its type, but for the names in ``_SOMETIMES``, ``_NULLABLE`` and ``_EITHER``. More may be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI

Schema = dict[str, Any]

_SOMETIMES = frozenset(
    {"seed", "engine", "context", "stop", "data", "system_fingerprint"}
    | {
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    }  # not of a mere load
)
_NULLABLE = frozenset(
    {"pid", "expires_in", "parent_id", "param", "stop_sequence", "logprobs", "content"}
    | {"memory", "device_memory", "missing", "install"}  # of an engine that can't run the model
)
_VECTOR: Schema = {"type": "array", "items": {"type": "number"}}
_EITHER: dict[str, list[Schema]] = {
    "embeddings": [_VECTOR, {"type": "array", "items": _VECTOR}],  # for one text, or for a list
    "embedding": [_VECTOR, {"type": "string", "contentEncoding": "base64"}],
}
_STREAMS = frozenset({"text/event-stream", "application/x-ndjson"})
_METHODS = frozenset({"get", "post", "put", "patch", "delete"})


def complete_document(app: FastAPI) -> None:
    """Make ``app.openapi`` tell more than FastAPI does."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(make())  # which keeps it there
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": "a key, where the server wants one"}
    schemes["header"] = {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same"}
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    for operation in _operations(document):
        responses: dict[str, Any] = operation["responses"]
        for status in [status for status, response in responses.items() if _is_never_sent(response)]:
            del responses[status]
        for response in responses.values():
            _complete_content(response.get("content", {}))


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in document["paths"].values():
        yield from (operation for method, operation in item.items() if method in _METHODS)


def _is_never_sent(response: dict[str, Any]) -> bool:
    return str(response.get("description", "")).startswith("never sent")


def _complete_content(content: dict[str, Any]) -> None:
    for kind in list(content):
        media = content[kind]
        if kind in _STREAMS:
            media["schema"] = {}  # of what a stream is made, a schema can't say
        elif "example" in media and not media.get("schema"):
            media["schema"] = _schema(media["example"]) if kind == "application/json" else {"type": "string"}
        elif not media.get("schema"):
            del content[kind]  # FastAPI's guess beside what is really sent, or for an answer without a body


def _schema(example: Any) -> Schema:
    """The schema of values like ``example``."""
    match example:
        case None:
            return {}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case dict():
            return _object([example])
    return {"type": "array", "items": _items(example)} if example else {"type": "array"}


def _items(examples: Sequence[Any]) -> Schema:
    if all(isinstance(one, dict) for one in examples):
        return _object(examples)
    kinds: list[Schema] = []
    for one in examples:
        if (schema := _schema(one)) not in kinds:
            kinds.append(schema)
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _object(examples: Sequence[dict[str, Any]]) -> Schema:
    names = list(dict.fromkeys(name for one in examples for name in one))
    values = {name: next(one[name] for one in examples if name in one) for name in names}
    required = [name for name in names if name not in _SOMETIMES and all(name in one for one in examples)]
    properties = {name: _property(name, _schema(value)) for name, value in values.items()}
    return {"type": "object", "properties": properties, "required": required}


def _property(name: str, schema: Schema) -> Schema:
    if name in _EITHER and schema.get("type") == "array":
        return {"anyOf": _EITHER[name]}
    return {"anyOf": [schema, {"type": "null"}]} if name in _NULLABLE and schema else schema
