"""JSON from the real model, held to a schema."""

from __future__ import annotations

import json

import pytest

from myllm_core import ChatRequest, Message, Sampling, TextDelta
from myllm_core.types import Grammar

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
RULE = Grammar("json_schema", json.dumps(SCHEMA))


def ask(engine, **sampling):
    request = ChatRequest((Message("user", "Describe a person as JSON."),), Sampling(**sampling), 200, grammar=RULE)
    events = list(engine.chat(request))
    return "".join(e.text for e in events if isinstance(e, TextDelta)), events


@pytest.mark.parametrize("seed", range(12))
def test_every_reply_is_valid(shared, seed):
    how = {} if seed % 2 else {"repeat_penalty": 1.3}
    person = json.loads(ask(shared, temperature=1.0, top_k=0, seed=seed, **how)[0])
    assert set(person) == {"name", "age", "tags"} and 1 <= len(person["tags"]) <= 3


def test_greedy_replies_are_valid_and_repeatable(shared):
    texts = {ask(shared, temperature=0)[0] for _ in range(3)}
    assert len(texts) == 1 and json.loads(texts.pop())
