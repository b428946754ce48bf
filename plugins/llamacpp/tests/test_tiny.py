"""Models of other kinds than the real test model, tiny and random: cut, window, recurrence, encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from myllm_core.errors import ContextLengthError, UnsupportedError


@pytest.mark.parametrize("kind", ["llama", "window", "mamba"])
@pytest.mark.parametrize("unified", [True, False])
def test_a_conversation_that_goes_on_is_reused_and_writes_what_it_would_from_scratch(load, tiny, same, kind, unified):
    prompt = list(range(10, 60))
    driver = load(tiny[kind], kv_unified=unified)
    [first] = driver.run(prompt, tokens=12)
    longer = prompt + first.tokens + [20, 21, 22]
    [second] = driver.run(longer, tokens=12)
    assert second.cached >= len(prompt) + 11
    [alone] = load(tiny[kind]).run(longer, tokens=12)
    assert alone.cached == 0
    same(second, alone)


@pytest.mark.parametrize("kind", ["llama", "window", "mamba"])
def test_a_conversation_that_turns_off_early_writes_what_it_would_from_scratch(load, tiny, same, kind):
    prompt = list(range(10, 60))
    driver = load(tiny[kind])
    driver.run(prompt, tokens=40)
    other = [*prompt[:30], 99, 98, 97]
    [branch] = driver.run(other, tokens=12)
    [alone] = load(tiny[kind]).run(other, tokens=12)
    same(branch, alone)
    assert branch.cached == (0 if kind == "mamba" else branch.cached)


def test_a_window_that_has_moved_on_is_not_reused(load, tiny, same):
    options = {"n_parallel": 1, "n_batch": 32, "n_ctx": 512}  # so the windowed layers keep 256 tokens
    driver = load(tiny["window"], **options)
    prompt = [10 + number % 250 for number in range(400)]
    driver.run(prompt, tokens=20)
    early = [*prompt[:30], 99, 98, 97]
    [branch] = driver.run(early, tokens=12)
    assert branch.cached == 0
    same(branch, load(tiny["window"], **options).run(early, tokens=12)[0])


def test_a_window_that_is_kept_whole_is_reused(load, tiny):
    driver = load(tiny["window"], n_parallel=1, n_batch=32, n_ctx=512, swa_full=True)
    prompt = [10 + number % 250 for number in range(400)]
    driver.run(prompt, tokens=20)
    [branch] = driver.run([*prompt[:30], 99, 98, 97], tokens=12)
    assert branch.cached == 30


@pytest.mark.parametrize("kind", ["llama", "window", "mamba"])
def test_sequences_side_by_side_write_what_each_would_alone(load, tiny, same, kind):
    prompts = [[10 + (number * step) % 250 for number in range(5 + 20 * step)] for step in range(1, 7)]
    replies = load(tiny[kind], n_batch=16, n_parallel=6).run(*prompts, tokens=20)
    for prompt, reply in zip(prompts, replies, strict=True):
        same(reply, load(tiny[kind], n_batch=16, n_parallel=1).run(prompt, tokens=20)[0])


def test_a_recurrent_model_reuses_nothing_when_all_of_the_prompt_is_known(load, tiny, same):
    driver = load(tiny["mamba"])
    prompt = list(range(10, 60))
    [first] = driver.run(prompt, tokens=1)
    [again] = driver.run(prompt, tokens=1)
    assert again.cached == 0
    same(again, first)


def test_a_piece_of_a_sentencepiece_prompt_goes_on_where_the_last_one_ended(load, tiny):
    engine = load(tiny["llama"]).engine
    spelled = lambda text, special: b"".join(map(engine.piece, engine.tokenize(text, special)))  # noqa: E731
    assert spelled("hello", True) == b" hello"  # where a prompt may begin, the vocabulary wants its space
    assert spelled("hello", False) == b"hello"
    assert spelled(" hello", False) == b" hello"
    assert spelled("\n\nhello", True) == b"\n\nhello"
    assert spelled("hello " * 3000, False) == b"hello " * 3000  # tokenized in parts


def test_bos_is_wanted_where_the_vocabulary_says_so(load, tiny):
    facts = load(tiny["llama"]).engine.facts
    assert (facts.bos_token, facts.bos_text, facts.eos_text) == (1, "<s>", "</s>")
    assert set(facts.special_tokens) == {"<unk>", "<s>", "</s>"}


def test_an_encoder_makes_embeddings_and_nothing_else(load, tiny):
    engine = load(tiny["bert"]).engine
    assert engine.facts.capabilities == {"embed"}
    together = engine.embed(["hello world", "cat sat", "hello cats"] * 20)
    assert together.prompt_tokens == 20 * (4 + 4 + 5)  # with CLS and SEP
    for index, text in enumerate(["hello world", "cat sat", "hello cats"]):
        alone = np.array(engine.embed([text]).vectors[0])
        assert np.abs(alone - together.vectors[index]).max() < 1e-3
        assert np.linalg.norm(alone) == pytest.approx(1)
    with pytest.raises(ContextLengthError, match="53 tokens, the model takes 32"):
        engine.embed(["hello", "cat " * 51])
    with pytest.raises(UnsupportedError, match="makes embeddings"):
        engine.step()


def test_long_embedding_inputs_are_pooled_over_chunks(load, tiny):
    text = "hello " * 150
    [chunked] = load(tiny["llama"], n_batch=32).engine.embed([text]).vectors
    [whole] = load(tiny["llama"], n_batch=512).engine.embed([text]).vectors
    assert np.abs(np.array(chunked) - whole).max() < 1e-3


def test_tiny_models_are_worth_testing_with(load, tiny: dict[str, Path]):
    for kind in ("llama", "window", "mamba"):
        one, other = load(tiny[kind]).run([10, 20, 30], [40, 50, 60], tokens=20)
        assert one.tokens != other.tokens
        assert len(set(one.tokens)) > 2
