"""Sequences on a backend that gives logits: what a grammar forces is read in one piece, and comes out the same."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from myllm_core import ChatRequest, Message, Sampling, TextDelta
from myllm_core.assembled import WRITES, AssembledEngine, Parts
from myllm_core.decoding import Decoding
from myllm_core.testing.engine.given import ask, ask_together
from myllm_core.types import Grammar

SCHEMA = {
    "type": "object",
    "properties": {"description": {"enum": ["long", "short"]}, "measurement": {"type": "integer", "maximum": 99}},
    "required": ["description", "measurement"],
    "additionalProperties": False,
}
RULE = Grammar("json_schema", json.dumps(SCHEMA))
PATIENCE = 20


class HashBackend:
    """Logits that depend on all that a sequence has read; notes the sizes of its passes."""

    vocab_size = 260

    def __init__(self):
        self.seen: dict[int, list[int]] = {}
        self.passes: list[tuple[str, int]] = []

    def open(self, number, room):
        self.seen[number] = []
        return room

    def put(self, number, tokens):
        self.seen[number] += tokens
        seed = random.Random(str(self.seen[number])).randrange(2**32)
        return np.random.default_rng(seed).normal(size=self.vocab_size).astype(np.float32)

    def read(self, number, tokens):
        self.passes.append(("read", len(tokens)))
        return self.put(number, tokens)

    def write(self, tokens):
        self.passes.append(("write", len(tokens)))
        return [self.put(number, [token]) for number, token in tokens.items()]

    def cut(self, number, length):
        del self.seen[number][length:]
        return True

    def close(self, number):
        del self.seen[number]


@pytest.fixture
def hashing(byte_engine):
    """Makes an engine on such a backend, with the backend."""

    class Hashing(AssembledEngine):
        name = "hashing"
        formats = frozenset({"hashing"})
        probe, estimate, load = byte_engine.probe, byte_engine.estimate, byte_engine.load

    def make(context=600, places=3):
        letters, backend = byte_engine(context_size=context, capabilities=WRITES), HashBackend()
        decoding = Decoding(backend, context, places, 256)
        return Hashing(Parts(letters, letters.facts, lambda: None, decoding, max_sequences=places)), backend

    return make


def request(seed, text="x", sampling=None, **more):
    how = Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": seed, **(sampling or {})})
    return ChatRequest((Message("user", text),), how, **{"max_tokens": 100, "grammar": RULE, **more})


def test_what_a_grammar_forces_takes_one_pass(hashing):
    engine, backend = hashing()
    reply = ask(engine, request(1), PATIENCE)
    usage = reply.ended_well().usage
    assert set(json.loads(reply.text)) == {"description", "measurement"}
    assert usage.completion_tokens == len(reply.text.encode())
    pieces = [size for kind, size in backend.passes if kind == "read"][1:]
    assert max(pieces) > len('{"description": "') / 2
    assert len(backend.passes) < usage.completion_tokens / 3


@pytest.mark.parametrize(
    "sampling", [{}, {"repeat_penalty": 1.3, "frequency_penalty": 0.5}], ids=["plain", "penalties"]
)
def test_a_greedy_reply_is_the_one_that_single_steps_give(hashing, monkeypatch, sampling):
    def replies():
        engine, _ = hashing()
        asked = [request(1, text, {"temperature": 0.0, **sampling}) for text in "abcdef"]
        return [ask(engine, one, PATIENCE).text for one in asked]

    quick = replies()
    monkeypatch.setattr("myllm_core.chat.constraint.Constraint.forced", lambda self, token: [])
    assert replies() == quick and len(set(quick)) > 2


def test_replies_side_by_side_are_those_alone_and_share_passes(hashing):
    engine, backend = hashing()
    asked = [request(1), request(2), request(3, grammar=None, ignore_eos=True, max_tokens=40)]
    alone = [ask(engine, one, PATIENCE).text for one in asked]
    backend.passes.clear()
    together = ask_together(engine, asked, PATIENCE)
    assert [reply.text for reply in together] == alone
    assert any(kind == "write" and size > 1 for kind, size in backend.passes)
    assert len(backend.passes) < sum(reply.finish.usage.completion_tokens for reply in together) * 2 / 3


@pytest.mark.parametrize("most", range(1, 25))
def test_a_limit_holds_amid_what_is_forced(hashing, most):
    engine, _ = hashing()
    finish = ask(engine, request(1, max_tokens=most), PATIENCE).ended_well()
    assert finish.reason == "length" and finish.usage.completion_tokens == most


@pytest.mark.parametrize("room", range(1, 25))
def test_the_context_holds_amid_what_is_forced(hashing, room):
    engine, backend = hashing()
    prompt = ask(engine, request(1), PATIENCE).finish.usage.prompt_tokens
    engine, backend = hashing(context=prompt + room)
    finish = ask(engine, request(1, max_tokens=None), PATIENCE).ended_well()
    assert (finish.reason, finish.usage.completion_tokens) == ("length", room)
    assert max(map(len, backend.seen.values())) <= prompt + room
    assert ask(engine, request(2, max_tokens=1), PATIENCE).ended_well().usage.cached_tokens > 0


def test_every_token_has_a_log_probability_when_they_are_asked_for(hashing):
    engine, backend = hashing()
    reply = ask(engine, request(1, logprobs=2), PATIENCE)
    told = [position for event in reply.events if isinstance(event, TextDelta) for position in event.logprobs]
    assert len(told) == reply.ended_well().usage.completion_tokens
    assert all(len(position.top) == 2 and position.chosen.logprob < 0 for position in told)
    assert [size for kind, size in backend.passes if kind == "read"][1:] == []
