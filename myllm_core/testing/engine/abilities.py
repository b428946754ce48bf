"""That what an engine claims is there, and what it doesn't claim is refused."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import MyllmError, UnsupportedError
from myllm_core.testing.engine.given import FREE, GREEDY, EngineCase, EngineFixtures, ask, ask_together, question
from myllm_core.types import CompletionRequest, Grammar

CAPABILITIES = frozenset({"chat", "complete", "embed", "grammar", "logprobs", "rerank", "tools", "vision"})
_SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "name": {"enum": ["Ada", "Grüße 漢"]}},
    "required": ["age", "name"],
    "additionalProperties": False,
}
_ROUNDING = 1e-3


class AbilityTests(EngineFixtures):
    """Capabilities, one by one."""

    @pytest.fixture
    def claims(self, engine: Engine) -> frozenset[str]:
        """What the loaded engine claims."""
        return engine.facts.capabilities

    def test_the_capabilities_are_known_ones(self, claims: frozenset[str]) -> None:
        assert claims and claims <= CAPABILITIES, f"unknown: {', '.join(sorted(claims - CAPABILITIES))}"

    def test_chat_is_refused_when_it_isnt_claimed(
        self, engine: Engine, claims: frozenset[str], case: EngineCase
    ) -> None:
        if "chat" in claims:
            pytest.skip("the engine chats")
        with pytest.raises(UnsupportedError):
            finish = ask(engine, question(), case.patience).finish
            raise finish.error or AssertionError("it answered")

    def test_a_raw_prompt_goes_on_or_is_refused(self, engine: Engine, claims: frozenset[str], case: EngineCase) -> None:
        request = CompletionRequest("Once upon a time", GREEDY, max_tokens=4)
        if "complete" in claims:
            reply = ask(engine, request, case.patience)
            assert reply.ended_well() and reply.written
        elif isinstance(engine, TokenEngine):
            pytest.skip("the core continues prompts with a TokenEngine as it chats")
        else:
            with pytest.raises(UnsupportedError):
                ask(engine, request, case.patience)

    def test_embeddings_are_refused_when_they_arent_claimed(self, engine: Engine, claims: frozenset[str]) -> None:
        if "embed" in claims:
            pytest.skip("the engine makes embeddings")
        with pytest.raises(UnsupportedError):
            engine.embed(["text"])

    def test_there_is_a_score_for_each_document_or_none(self, engine: Engine, claims: frozenset[str]) -> None:
        documents = ["a cat on a mat", "the tides of the sea", "漢字 👋🏽", "a cat on a mat"]
        if "rerank" not in claims:
            with pytest.raises(UnsupportedError):
                engine.rerank("Where is the cat?", documents)
            return
        scores = engine.rerank("Where is the cat?", documents).scores
        assert len(scores) == len(documents) and all(math.isfinite(score) for score in scores)
        assert math.isclose(scores[0], scores[3], rel_tol=1e-2, abs_tol=1e-2), "the same document has two scores"

    def test_there_is_a_vector_for_each_text(self, engine: Engine, claims: frozenset[str]) -> None:
        if "embed" not in claims:
            pytest.skip("the engine makes no embeddings")
        texts = ["a cat on a mat", "the tides of the sea", "漢字 👋🏽", "a cat on a mat"]
        vectors = engine.embed(texts).vectors
        assert len(vectors) == len(texts)
        assert len({len(vector) for vector in vectors}) == 1 and vectors[0]
        assert all(type(value) is float and math.isfinite(value) for vector in vectors for value in vector)
        assert all(any(vector) for vector in vectors)
        assert _cosine(vectors[0], vectors[3]) > 1 - _ROUNDING, "the same text has two vectors"
        for text, vector in zip(texts, vectors, strict=True):
            assert _cosine(engine.embed([text]).vectors[0], vector) > 1 - 10 * _ROUNDING, "a vector depends on others"

    def test_embeddings_of_odd_text_are_made_or_refused(self, engine: Engine, claims: frozenset[str]) -> None:
        if "embed" not in claims:
            pytest.skip("the engine makes no embeddings")
        for text in ("", "\x00", "half a pair: \ud83d", "word " * 20_000):
            try:
                vectors = engine.embed([text]).vectors
            except MyllmError:
                continue
            assert len(vectors) == 1 and all(math.isfinite(value) for value in vectors[0])

    def test_log_probabilities_are_sound(self, talker: Engine, claims: frozenset[str], case: EngineCase) -> None:
        if "logprobs" not in claims:
            pytest.skip("the engine gives no log probabilities; the core refuses to ask for them")
        reply = ask(talker, question(logprobs=3), case.patience)
        positions = reply.positions
        assert positions, "there are no log probabilities"
        for position in positions:
            values = [item.logprob for item in position.top]
            assert 1 <= len(values) <= 3 and values == sorted(values, reverse=True)
            assert max(values) <= _ROUNDING and sum(map(math.exp, values)) <= 1 + _ROUNDING
            assert position.chosen.logprob <= values[0] + _ROUNDING
            if "temperature" in talker.sampling:
                assert abs(position.chosen.logprob - values[0]) < _ROUNDING, "greedy, but not the likeliest token"
        assert b"".join(p.chosen.bytes for p in positions).decode(errors="replace").startswith(reply.text)

    def test_a_reply_matches_its_expression(self, talker: Engine, claims: frozenset[str], case: EngineCase) -> None:
        _needs_grammar(claims)
        grammar = Grammar("regex", "(red|green|blue): Grüße 漢")
        for seed in range(4):
            request = question(sampling=replace(FREE, seed=seed), grammar=grammar, max_tokens=64)
            reply = ask(talker, request, case.patience)
            assert reply.ended_well().reason == "stop"
            assert reply.text in {f"{colour}: Grüße 漢" for colour in ("red", "green", "blue")}

    def test_a_reply_follows_its_schema(self, talker: Engine, claims: frozenset[str], case: EngineCase) -> None:
        _needs_grammar(claims)
        request = question("Who are you?", sampling=FREE, max_tokens=64)
        held = replace(request, grammar=Grammar("json_schema", json.dumps(_SCHEMA)))
        if isinstance(talker, TokenEngine) and talker.max_sequences > 1:
            reply, free = ask_together(talker, [held, request], case.patience)
            free.ended_well()
        else:
            reply = ask(talker, held, case.patience)
        assert reply.ended_well().reason == "stop"
        value = json.loads(reply.text)
        assert set(value) == {"age", "name"} and 0 <= value["age"] <= 99


def _needs_grammar(claims: frozenset[str]) -> None:
    if "grammar" not in claims:
        pytest.skip("the engine can't be held to a grammar; the core refuses to ask for it")


def _cosine(one: list[float], other: list[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other) or 1.0)
