"""Questions whose answers are held to a JSON schema: for tests of engines, and for `bench_schema.py`."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from myllm_core import ChatRequest, Message, Sampling
from myllm_core.types import Grammar

MOST_TOKENS = 400


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(length: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": length}


SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "choices": (
        "Describe a city.",
        _object(city=_text(20), size={"enum": ["small", "large", "huge"]}, coastal={"type": "boolean"}),
    ),
    "nested": (
        "Write a shopping list.",
        _object(
            items={
                "type": "array",
                "items": _object(name=_text(16), count={"type": "integer", "minimum": 1, "maximum": 99}),
                "minItems": 1,
                "maxItems": 4,
            }
        ),
    ),
    "numbers": (
        "What is the weather like?",
        _object(
            celsius={"type": "number", "minimum": -60, "maximum": 60},
            humidity={"type": "integer", "minimum": 0, "maximum": 100},
            hours={
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 23},
                "minItems": 2,
                "maxItems": 2,
            },
        ),
    ),
    "free text": (
        "Tell me about a book.",
        _object(title=_text(40), summary=_text(160), note={"type": ["string", "null"], "maxLength": 20}),
    ),
}
"""A question and a schema, by name."""


def request(name: str, seed: int, *, held: bool = True, tokens: int = MOST_TOKENS) -> ChatRequest:
    """A question at temperature 1, from all tokens; one that isn't ``held`` goes on to its limit."""
    text, schema = SCHEMAS[name]
    return ChatRequest(
        (Message("user", f"{text} Answer in JSON."),),
        Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed),
        max_tokens=tokens,
        grammar=Grammar("json_schema", json.dumps(schema)) if held else None,
        ignore_eos=not held,
    )


def problem(name: str, text: str) -> str:
    """What is wrong with an answer; empty when nothing is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON ({error}): {text[:80]}"
    return "; ".join(error.message for error in Draft202012Validator(SCHEMAS[name][1]).iter_errors(value))
