"""The same weights on transformers and on llama.cpp: the same tokens in, the same tokens out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of
from support.greedy import assert_answers_agree, assert_prompts_agree
from support.held import assert_replies_follow

from .conftest import load_engine

CLOSE = 0.02
"""Of log probabilities: what another order of sums may change."""


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path):
    options = load_options(LlamaCppEngine, {"n_ctx": 256, "n_parallel": 1, "n_threads": 1, "cache_disk": 0})
    model = model_of(smollm2_gguf, format="gguf")
    engine = LlamaCppEngine.load(model, options, lambda fraction: None)
    yield engine
    engine.close()


# This vocabulary has no tokens for some control characters and for bytes of characters beyond U+3FFFF.
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cn", "Co"])))
@settings(max_examples=200, deadline=None)
def test_texts_have_the_same_tokens(shared, llama, text):
    tokens = shared.tokenize(text, False)
    assert tokens == llama.tokenize(text, False)
    assert b"".join(map(shared.piece, tokens)) == text.encode("utf-8", "replace")


def test_vocabularies_and_facts_agree(shared, llama):
    one, other = shared.facts, llama.facts
    for name in ("trained_context", "vocab_size", "chat_template", "bos_token", "bos_text", "eos_text"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.eos_tokens <= other.eos_tokens  # llama.cpp takes <reponame> for an end of a turn, too
    assert set(one.special_tokens) == set(other.special_tokens)


@pytest.mark.timeout(600)
def test_prompts_and_greedy_answers_agree(shared):
    assert_prompts_agree(shared)
    assert_answers_agree(shared, CLOSE)


def test_replies_follow_their_schema(smollm2_safetensors):
    engine = load_engine(smollm2_safetensors, n_ctx=1024)
    assert_replies_follow(engine)
    engine.close()
