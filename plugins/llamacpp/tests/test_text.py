"""What the real model writes: right, repeatable, and the same alone as among others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from myllm_llamacpp.context import _CACHE_TYPES
from myllm_llamacpp.options import LoadSettings

from myllm_core import Sequence
from myllm_core.errors import ContextLengthError, InvalidRequest
from myllm_core.types import Sampling

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who lived in",
    "2 + 2 =",
    "The three primary colours are red,",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "The opposite of hot is",
    "My favourite season is summer because",
]


def test_the_capital_of_france(driver):
    [reply] = driver.run("The capital of France is", tokens=8)
    assert driver.text(reply).startswith(" Paris")


def test_control_tokens_are_only_made_when_asked_for(shared):
    for text in ("<|im_end|>", "<|im_start|>user", "a<|endoftext|>b"):
        plain, special = shared.tokenize(text, False), shared.tokenize(text, True)
        assert len(plain) > len(special)
        assert not set(plain) & shared.facts.eos_tokens
        assert b"".join(map(shared.piece, plain)).decode() == text
    [end] = shared.tokenize("<|im_end|>", True)
    assert end in shared.facts.eos_tokens
    assert shared.piece(end) == b""


# This vocabulary has no tokens for some control characters and for bytes of characters beyond U+3FFFF.
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cn", "Co"])))
@settings(max_examples=200, deadline=None)
def test_pieces_spell_the_text_that_was_tokenized(shared, text):
    assert b"".join(map(shared.piece, shared.tokenize(text, False))) == text.encode("utf-8", "replace")


def test_a_lone_surrogate_and_very_long_words_are_only_text(shared):
    assert b"".join(map(shared.piece, shared.tokenize("a\ud800b\0c", False))) == b"a?b\0c"
    for text in ("a" * 100_000, " " * 100_000, "ab \n" * 25_000, "\U0001f600" * 20_000):
        assert b"".join(map(shared.piece, shared.tokenize(text, False))).decode() == text


def test_facts(shared):
    facts = shared.facts
    assert (facts.context_size, facts.trained_context, facts.vocab_size) == (2048, 8192, 49152)
    assert facts.bos_token is None
    assert (facts.bos_text, facts.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(facts.special_tokens)
    assert "im_start" in (facts.chat_template or "")
    assert facts.capabilities == {"chat", "complete", "logprobs", "grammar", "embed"}


EXACT = LoadSettings().keys == "bf16"
"""Whether one attention kernel serves all batches here; elsewhere floating point may differ in the last digits."""


def assert_equal(reply, other, same):
    if EXACT:
        assert [(out.token, out.logprob) for out in reply.outs] == [(out.token, out.logprob) for out in other.outs]
    else:
        same(reply, other, tolerance=0.5)


@pytest.mark.parametrize("unified", [True, False])
def test_nine_at_once_write_what_each_writes_alone(load, same, unified):
    prompts = [*PROMPTS, "The quick brown fox jumps over the lazy dog and runs through the forest. " * 20]
    among = load(n_parallel=9, kv_unified=unified, n_ctx=4608).run(*prompts, tokens=8)
    single = load(n_parallel=1, n_batch=24)
    for prompt, reply in zip(prompts, among, strict=True):
        assert_equal(reply, single.run(prompt, tokens=8)[0], same)


def test_chats_that_take_turns_write_what_each_writes_alone(load, same):
    driver, fresh = load(), load(n_parallel=1, cache_ram=0)
    prompts = [*PROMPTS[:3], "The quick brown fox jumps over the lazy dog and runs through the forest. " * 8]
    driver.run(*prompts, tokens=8)  # leaves sequences all over the cache
    for _ in range(2):
        for prompt in prompts:
            [reply] = driver.run(prompt, tokens=12)
            assert_equal(reply, fresh.run(prompt, tokens=12)[0], same)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=11),
        Sampling(seed=2**32 - 1, temperature=1.2, top_k=0, top_p=0.9),
        Sampling(seed=3, top_k=20, top_p=1.0, min_p=0.1, repeat_penalty=1.3, presence_penalty=0.5),
    ],
)
def test_a_seed_repeats_alone_and_among_others(load, sampling):
    driver = load()
    first, again = (driver.run("Tell me a story.", tokens=20, sampling=sampling)[0] for _ in range(2))
    for prompt in PROMPTS[1:]:
        driver.start(prompt, tokens=40, sampling=Sampling(seed=99))
    [among] = driver.run("Tell me a story.", tokens=20, sampling=sampling)
    assert first.tokens == again.tokens == among.tokens


def test_other_seeds_write_other_texts(driver):
    replies = [driver.run("Tell me a story.", tokens=20, sampling=Sampling(seed=seed))[0] for seed in range(4)]
    assert len({tuple(reply.tokens) for reply in replies}) == 4


def test_top_k_1_and_a_tiny_top_p_are_greedy(driver):
    [greedy] = driver.run(PROMPTS[5])
    for narrow in (Sampling(top_k=1), Sampling(top_p=0.001), Sampling(min_p=1.0), Sampling(temperature=0.01)):
        assert driver.run(PROMPTS[5], sampling=narrow)[0].tokens == greedy.tokens


def test_penalties_see_the_prompt_and_the_reply(driver):
    prompt = "The cat sat. The cat sat. The cat sat. The cat"
    [sat] = driver.run(prompt, tokens=1)
    assert driver.text(sat) == " sat"
    for penalty in ({"repeat_penalty": 5.0}, {"presence_penalty": 2.0, "frequency_penalty": 2.0}):
        [other] = driver.run(prompt, tokens=1, sampling=Sampling(temperature=0.0, **penalty))
        assert driver.text(other) != " sat"
        [unseen] = driver.run(prompt, tokens=1, sampling=Sampling(temperature=0.0, repeat_last_n=0, **penalty))
        assert driver.text(unseen) == " sat"


def test_logprobs_are_those_of_a_plain_softmax(driver):
    ids = driver.engine.tokenize(PROMPTS[1], False)
    [reply] = driver.run(PROMPTS[1], tokens=1, sampling=Sampling(seed=5, temperature=1.5), logprobs=20)
    logits = plain_logits(driver.engine, ids)
    expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    [out] = reply.outs
    assert out.logprob == pytest.approx(expected[out.token], abs=0.01)
    best = np.argsort(-expected)[:20]
    assert [token for token, _ in out.top] == best.tolist()
    assert [logprob for _, logprob in out.top] == pytest.approx(expected[best].tolist(), abs=0.01)


def plain_logits(engine, ids):
    """The logits after a prompt, by llama.cpp's simplest calls in a context of its own."""
    from llama_cpp import llama_cpp as api

    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = 512
    params.n_threads = params.n_threads_batch = 1
    params.type_k = _CACHE_TYPES[LoadSettings().keys]
    context = api.llama_init_from_model(engine._model.handle, params)
    tokens = (api.llama_token * len(ids))(*ids)
    assert api.llama_decode(context, api.llama_batch_get_one(tokens, len(ids))) == 0
    logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (engine.facts.vocab_size,)).copy()
    api.llama_free(context)
    return logits.astype(np.float64)


def test_all_logprobs_together_are_certain(driver):
    [reply] = driver.run("Hello", tokens=1, logprobs=49152)
    [out] = reply.outs
    assert np.exp([logprob for _, logprob in out.top]).sum() == pytest.approx(1, abs=1e-4)
    assert out.top[0] == (out.token, out.logprob)


def test_a_cancelled_sequence_writes_nothing_more_and_leaves_its_slot(driver):
    number = driver.start("Once upon a time", tokens=100)
    driver.step()
    driver.cancel(number)
    assert driver.engine.step() == []
    driver.engine.cancel(number)
    driver.engine.cancel(12345)
    assert len(driver.run(*PROMPTS, tokens=2)) == 8


@pytest.mark.parametrize(
    ("tokens", "error"), [([], InvalidRequest), ([5, -1], InvalidRequest), ([49152], InvalidRequest)]
)
def test_a_prompt_that_cannot_be_run_fails_alone(driver, tokens, error):
    good = driver.start(PROMPTS[0], tokens=3)
    [reply] = driver.run(tokens)
    driver.finish()
    assert isinstance(reply.error, error)
    assert len(driver.replies[good].outs) == 3


def test_a_sequence_ends_where_its_context_ends(load):
    driver = load(n_ctx=256)
    limit = driver.engine.facts.context_size
    [reply] = driver.run([100] * (limit - 3), tokens=100)
    assert len(reply.outs) == 4  # three fit, and the one after the last needs no room
    assert isinstance(reply.error, ContextLengthError)
    assert reply.error.data == {"prompt_tokens": limit + 1, "context_size": limit}
    [reply] = driver.run([100] * (limit + 1))
    assert isinstance(reply.error, ContextLengthError)
    assert reply.outs == []


def test_an_id_can_be_used_again_only_when_it_is_free(driver):
    driver.engine.add(Sequence(7, [5, 6], Sampling(temperature=0.0), 5))
    with pytest.raises(InvalidRequest, match="7 is running"):
        driver.engine.add(Sequence(7, [5, 6], Sampling(temperature=0.0), 5))
    driver.engine.cancel(7)
    driver.engine.add(Sequence(7, [5, 6], Sampling(temperature=0.0), 5))
    driver.engine.cancel(7)
