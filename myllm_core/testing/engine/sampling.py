"""That an engine does what the sampling options say that it claims."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from myllm_core.engine import Engine, Sequence, TokenEngine
from myllm_core.testing.engine.given import (
    FREE,
    GREEDY,
    EngineCase,
    EngineFixtures,
    alike,
    ask,
    ask_together,
    comparable,
    needs,
    question,
)
from myllm_core.types import ChatRequest, Sampling

_SEEDS = tuple(range(1, 9))
_ENOUGH = 6
"""Of the seeds: a sum in another order changes last digits, and so a choice now and then."""
_UNITS = (" word", " 1", " a", "a", "ab", "ha", " no")
_REPEATED = 24


class SamplingTests(EngineFixtures):
    """Temperature, truncation, penalties, seed."""

    def test_temperature_zero_takes_the_likeliest(self, talker: Engine, case: EngineCase) -> None:
        needs(talker, "temperature")
        first = ask(talker, comparable(talker), case.patience)
        for seed in _SEEDS[:3]:
            other = ask(talker, comparable(talker, sampling=replace(GREEDY, seed=seed)), case.patience)
            assert alike(first, other), "with temperature 0 the seed changes the reply"

    @pytest.mark.parametrize(("option", "value"), [("top_k", 1), ("top_p", 1e-6), ("min_p", 1.0)])
    def test_truncation_to_one_token_takes_the_likeliest(
        self, talker: Engine, case: EngineCase, option: str, value: float
    ) -> None:
        needs(talker, "temperature", option)
        greedy = ask(talker, comparable(talker), case.patience)
        for seed in _SEEDS[:3]:
            found = ask(talker, comparable(talker, sampling=_free(seed, **{option: value})), case.patience)
            assert alike(greedy, found), f"{option} {value} doesn't keep the likeliest token alone"

    @pytest.mark.parametrize(("option", "value"), [("repeat_penalty", 10.0), ("frequency_penalty", 2.0)])
    def test_a_penalty_ends_a_repetition(
        self, tokens: TokenEngine, case: EngineCase, option: str, value: float
    ) -> None:
        needs(tokens, "temperature", option)
        for unit in _UNITS:
            prompt = tokens.tokenize(unit * _REPEATED, False)[:_REPEATED]
            plain = next_token(tokens, prompt, GREEDY)
            if plain in prompt:
                penalised: dict[str, Any] = {option: value}
                found = next_token(tokens, prompt, replace(GREEDY, **penalised))
                assert found != plain, f"{option} changes nothing"
                return
        pytest.skip("the model doesn't repeat itself")

    def test_a_seed_repeats_a_reply(self, talker: Engine, case: EngineCase) -> None:
        needs(talker, "seed")
        one, other = ([ask(talker, _spread(seed), case.patience).written for seed in _SEEDS] for _ in range(2))
        assert _equal(one, other) >= _ENOUGH, "a seed gives another reply the second time"

    def test_seeds_differ(self, tokens: TokenEngine, case: EngineCase) -> None:
        needs(tokens, "seed", "temperature")
        texts = {ask(tokens, _spread(seed), case.patience).written for seed in (*_SEEDS, 2**32 - 1)}
        assert len(texts) > 1, "every seed gives the same reply"

    def test_a_seed_repeats_a_reply_in_a_batch(self, tokens: TokenEngine, case: EngineCase) -> None:
        needs(tokens, "seed")
        if tokens.max_sequences < 2:
            pytest.skip("the engine runs one sequence at a time")
        requests = [_spread(seed) for seed in _SEEDS]
        alone = [ask(tokens, request, case.patience).written for request in requests]
        together = [reply.written for reply in ask_together(tokens, requests, case.patience)]
        assert _equal(alone, together) >= _ENOUGH, "a reply depends on what else is in the batch"


def _free(seed: int, **changes: Any) -> Sampling:
    return replace(FREE, seed=seed, **changes)


def _spread(seed: int) -> ChatRequest:
    """A question whose answers differ. Few tokens to choose from: their order, and so the choice, bears rounding."""
    return question("Tell me any word.", sampling=_free(seed, top_k=4), max_tokens=2)


def _equal(some: list[str], others: list[str]) -> int:
    return sum(one == other for one, other in zip(some, others, strict=True))


def next_token(engine: TokenEngine, prompt: list[int], sampling: Sampling) -> int:
    """The token that comes after a prompt."""
    engine.add(Sequence(1, list(prompt), sampling, 2))
    try:
        for _ in range(10_000):
            for out in engine.step():
                assert out.error is None, out.error
                return out.token
    finally:
        engine.cancel(1)
    pytest.fail("not one token in 10,000 steps")
