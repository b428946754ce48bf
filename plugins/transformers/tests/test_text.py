"""What the real model writes: right, repeatable, and the same alone as among others."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core import Sequence
from myllm_core.errors import ContextLengthError, InvalidRequest
from myllm_core.types import Sampling

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who lived in",
    "2 + 2 =",
    "def fibonacci(n):\n",
]


def test_the_capital_of_france(driver):
    [reply] = driver.run("The capital of France is", tokens=6)
    assert driver.text(reply).startswith(" Paris")


def test_facts(shared):
    facts = shared.facts
    assert (facts.context_size, facts.trained_context, facts.vocab_size) == (256, 8192, 49152)
    assert facts.bos_token is None
    assert (facts.bos_text, facts.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert facts.eos_tokens == {0, 2}
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(facts.special_tokens)
    assert "im_start" in (facts.chat_template or "")
    assert facts.capabilities == {"chat", "complete", "logprobs", "grammar", "embed"}


def test_it_runs_many_sequences_in_one_pass(shared):
    assert type(shared._parts.decoding._backend).__name__ == "Together"


def test_four_at_once_write_what_each_writes_alone(driver):
    together = driver.run(*PROMPTS)
    for prompt, reply in zip(PROMPTS, together, strict=True):
        [alone] = driver.run(prompt)
        assert reply.tokens == alone.tokens
        assert [out.logprob for out in reply.outs] == pytest.approx([out.logprob for out in alone.outs], abs=1e-3)


def test_sequences_come_and_go_between_steps(driver):
    [expected] = driver.run(PROMPTS[1], tokens=16)
    first = driver.start(PROMPTS[0], tokens=100)
    second = driver.start(PROMPTS[1], tokens=16)
    for step in range(30):
        if step == 4:
            driver.cancel(first)
            driver.start(PROMPTS[2], tokens=5)
        if step == 6:
            driver.start(PROMPTS[3], tokens=5)
        driver.step()
    assert driver.replies[second].tokens == expected.tokens


@pytest.mark.parametrize("sampling", [Sampling(seed=11), Sampling(seed=2**32 - 1, temperature=1.2, top_k=0, top_p=0.9)])
def test_a_seed_repeats_alone_and_among_others(driver, sampling):
    first, again = (driver.run("Tell me a story.", sampling=sampling)[0] for _ in range(2))
    driver.start(PROMPTS[1], tokens=30, sampling=Sampling(seed=99))
    [among] = driver.run("Tell me a story.", sampling=sampling)
    assert first.tokens == again.tokens == among.tokens


def test_the_next_turn_reads_only_what_is_new(driver):
    prompt = driver.engine.tokenize("Here is a long story about a cat and a dog. " * 6, False)
    [first] = driver.run(prompt, tokens=4)
    longer = [*prompt, *first.tokens, *driver.engine.tokenize(" And then", False)]
    [second] = driver.run(longer, tokens=8)
    assert second.cached >= len(prompt)
    other = [*prompt[:40], *driver.engine.tokenize(" Another end of it all", False)]
    [third] = driver.run(other, tokens=8)
    assert third.cached == 40
    for number in range(4):  # these take all places, and what was kept goes
        driver.run(driver.engine.tokenize(f"{number} is a number that takes a place of its own here", False), tokens=2)
    for tokens, reply in ((longer, second), (other, third)):
        [again] = driver.run(tokens, tokens=8)
        assert again.tokens == reply.tokens


def test_a_long_prompt_in_pieces_is_read_as_in_one(load, driver, smollm2_safetensors: Path):
    prompt = "The quick brown fox jumps over the lazy dog and runs through the forest. " * 6
    [whole] = driver.run(prompt)
    [pieces] = load(smollm2_safetensors, n_batch=16).run(prompt)
    assert pieces.tokens == whole.tokens


def test_a_sequence_ends_where_its_context_ends(driver):
    limit = driver.engine.facts.context_size
    [reply] = driver.run([100] * (limit - 3), tokens=100)
    assert len(reply.outs) == 4  # three fit, and the one after the last needs no room
    assert isinstance(reply.error, ContextLengthError)
    assert reply.error.data == {"prompt_tokens": limit + 1, "context_size": limit}


@pytest.mark.parametrize("tokens", [[], [5, -1], [49152]])
def test_a_prompt_that_cannot_be_run_fails_alone(driver, tokens):
    good = driver.start(PROMPTS[0], tokens=3)
    [reply] = driver.run(tokens)
    assert isinstance(reply.error, InvalidRequest)
    assert len(driver.replies[good].outs) == 3


def test_in_half_the_bits_it_says_the_same(load, smollm2_safetensors: Path):
    driver = load(smollm2_safetensors, dtype="bfloat16", attn_implementation="eager")
    assert driver.text(driver.run(PROMPTS[0], tokens=2)[0]) == " Paris."


def test_an_id_can_be_used_again_only_when_it_is_free(shared):
    shared.add(Sequence(7, [5, 6], Sampling(temperature=0.0), 5))
    with pytest.raises(InvalidRequest, match="7 is running"):
        shared.add(Sequence(7, [5, 6], Sampling(temperature=0.0), 5))
    shared.cancel(7)
