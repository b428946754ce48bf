"""Replies held to a schema, an expression or a grammar."""

from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_core import ChatRequest, Finish, Message, TextDelta
from myllm_core.chat.constraint import Constraints
from myllm_core.chat.pipeline import all_pieces
from myllm_core.errors import InvalidOption, InvalidRequest
from myllm_core.options import grammar, parse_options
from myllm_core.types import Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def wandering(byte_engine):
    """An engine that would write any byte, and keeps to what is allowed as an engine must."""

    class Wandering(byte_engine):
        def __init__(self, seed: int = 0, wish: bytes = b"", **facts):
            super().__init__(**facts)
            self.random = random.Random(seed)
            self.wish = list(wish)

        def step(self):
            outs = super().step()
            for out in outs:
                allowed = self.running[out.sequence_id].sequence.allowed
                self.running[out.sequence_id].reply.append(0)
                token = self.wish.pop(0) if self.wish else self.random.randrange(32, 127)
                if allowed is not None and not allowed.allows(token):
                    mask = int.from_bytes(allowed.mask(), "little")
                    token = self.random.choice([t for t in range(self.facts.vocab_size) if mask >> t & 1])
                out.token = token
            return outs

    return Wandering


def answer(engine, rule, **how):
    events = list(engine.chat(ChatRequest((Message("user", "x"),), max_tokens=300, grammar=rule, **how)))
    assert isinstance(events[-1], Finish)
    return "".join(e.text for e in events if isinstance(e, TextDelta)), events[-1]


@pytest.mark.parametrize("seed", range(20))
def test_a_schema_holds_whatever_the_model_would_write(wandering, seed):
    text, finish = answer(wandering(seed), Grammar("json_schema", json.dumps(PERSON)))
    person = json.loads(text)
    assert finish.reason == "stop"
    assert set(person) == {"name", "age"} and isinstance(person["name"], str) and 0 <= person["age"] <= 150


def test_what_the_model_wants_and_may_write_is_written(wandering):
    wish = b'{"name": "Ada", "age": 36}'
    assert answer(wandering(wish=wish), Grammar("json_schema", json.dumps(PERSON)))[0].encode() == wish


def test_an_expression_holds(wandering):
    text, finish = answer(wandering(), Grammar("regex", "(yes|no), [0-9]{3}"))
    assert finish.reason == "stop"
    assert text[:-5] in ("yes", "no") and text[-3:].isdigit()


def test_a_grammar_holds(wandering):
    text, _ = answer(wandering(), Grammar("lark", 'start: "a" ("b" | "c") "d"'))
    assert text in ("abd", "acd")


def test_reasoning_is_free_and_the_answer_is_held(wandering):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    engine = wandering(wish=b"hm, {[ anything</think>", chat_template=template)
    text, _ = answer(engine, Grammar("regex", "[ab]{4}"))
    assert len(text) == 4 and set(text) <= set("ab")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("json_schema", '{"type": "bogus"}', "bogus"),
        ("json_schema", '{"$ref": "#/nope"}', "nope"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("regex", "(", "unclosed"),
        ("lark", "start: nowhere", "nowhere"),
        ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "can't be used"),
        ("regex", "a" * 1_000_001, "longer"),
    ],
)
def test_what_cannot_be_a_rule_is_refused_in_one_line(wandering, kind, text, says):
    with pytest.raises(InvalidRequest, match=says) as error:
        answer(wandering(), Grammar(kind, text))
    assert "\n" not in error.value.message and len(error.value.message) <= 500


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
        max_leaves=8,
    )
)
def test_no_schema_breaks_the_engine(byte_engine, value):
    try:
        list(
            byte_engine().chat(
                ChatRequest((Message("user", "x"),), max_tokens=2, grammar=Grammar("json_schema", json.dumps(value)))
            )
        )
    except InvalidRequest as error:
        assert error.message


def test_a_rule_of_great_size_ends_soon(wandering):
    started = time.monotonic()
    _, finish = answer(wandering(), Grammar("regex", "(a{1,1000}){1,1000}b{1,1000}c"))
    assert finish.reason in ("error", "length", "stop")
    assert time.monotonic() - started < 20


def test_options_take_one_rule_only():
    assert grammar(parse_options({"regex": "a"})) == Grammar("regex", "a")
    assert grammar(parse_options({})) is None
    with pytest.raises(InvalidOption, match="one of json_schema, regex and grammar"):
        parse_options({"regex": "a", "json_schema": {}})


def test_what_must_come_is_told_and_nothing_is_changed(byte_engine):
    engine = byte_engine()
    constraints = Constraints(engine.facts, lambda: all_pieces(engine), engine.tokenize)
    rule = constraints.make(Grammar("regex", "(yes|no), sir"))
    rule.active = False
    assert rule.forced(ord("y")) == []
    rule.active = True
    for written, follows in zip("yes, sir", ["es, sir", "s, sir", ", sir", " sir", "sir", "ir", "r", ""], strict=True):
        mask = rule.mask()
        assert bytes(rule.forced(ord(written))).decode() == follows
        assert rule.mask() == mask and not rule.complete
        rule.accept(ord(written))
    assert rule.complete
