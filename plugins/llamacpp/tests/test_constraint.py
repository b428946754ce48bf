"""JSON from the real model, held to a schema."""

from __future__ import annotations

import json

import pytest

from myllm_core import ChatRequest, Message, Sampling, TextDelta
from myllm_core.types import Grammar
from support.held import assert_replies_follow

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


@pytest.mark.parametrize("seed", range(4))
def test_every_reply_is_valid(shared, seed):
    how = {} if seed % 2 else {"repeat_penalty": 1.3}
    person = json.loads(ask(shared, temperature=1.0, top_k=0, seed=seed, **how)[0])
    assert set(person) == {"name", "age", "tags"} and 1 <= len(person["tags"]) <= 3


def test_replies_side_by_side_follow_their_schemas(shared):
    assert_replies_follow(shared)


def test_greedy_replies_are_valid_and_repeatable(shared):
    texts = {ask(shared, temperature=0)[0] for _ in range(3)}
    assert len(texts) == 1 and json.loads(texts.pop())


def test_what_a_schema_leaves_no_choice_about_takes_no_steps(shared):
    before = shared.stats.steps
    text, events = ask(shared, temperature=0)
    steps, usage = shared.stats.steps - before, events[-1].usage
    assert steps < usage.completion_tokens
    assert shared.stats.forced_tokens >= usage.completion_tokens - steps
    assert b"".join(shared.piece(token) for token in shared.tokenize(text, False)).decode() == text


@pytest.mark.parametrize("most", range(1, 12))
def test_forced_tokens_count_and_end_where_the_reply_does(shared, most):
    request = ChatRequest((Message("user", "A person."),), Sampling(temperature=0), most, grammar=RULE)
    *_, finish = shared.chat(request)
    assert finish.reason == "length" and finish.usage.completion_tokens == most


def test_log_probabilities_are_of_tokens_that_were_chosen(shared):
    request = ChatRequest((Message("user", "A person."),), Sampling(temperature=0), 40, grammar=RULE, logprobs=2)
    before = shared.stats.forced_tokens
    told = [p for event in shared.chat(request) if isinstance(event, TextDelta) for p in event.logprobs]
    assert len(told) > 10 and all(len(position.top) == 2 for position in told)
    assert shared.stats.forced_tokens == before
