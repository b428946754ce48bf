"""The same weights on transformers and on llama.cpp: the same tokens in, the same tokens out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.chat.pipeline import Preparer, all_pieces
from myllm_core.runtime.choose import load_options
from myllm_core.testing import model_of
from myllm_core.types import ChatRequest, Message

TOKENS = 32
CLOSE = 0.05
"""Of log probabilities: llama.cpp keeps its cache in 16 bits."""

QUESTIONS = [
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "Explain why the sky is blue.",
    "Give me three tips for staying healthy.",
    "Translate 'good morning' into French.",
    "What is 12 times 12?",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that adds two numbers.",
    "What is the largest planet?",
    "Tell me a short story about a dragon.",
]


@pytest.fixture(scope="module")
def llama(smollm2_f32_gguf: Path):
    options = load_options(LlamaCppEngine, {"n_ctx": 256, "n_parallel": 1, "n_threads": 1, "cache_disk": 0})
    model = model_of(smollm2_f32_gguf, format="gguf")
    engine = LlamaCppEngine.load(model, options, lambda fraction: None)
    yield engine
    engine.close()


def prompt(engine, text: str) -> list[int]:
    preparer = Preparer(engine.facts, engine.tokenize, lambda: all_pieces(engine))
    return preparer.prepare(ChatRequest((Message("user", text),))).tokens


# This vocabulary has no tokens for some control characters and for bytes of characters beyond U+3FFFF.
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cn", "Co"])))
@settings(max_examples=200, deadline=None)
def test_texts_have_the_same_tokens(shared, llama, text):
    tokens = shared.tokenize(text, False)
    assert tokens == llama.tokenize(text, False)
    assert b"".join(map(shared.piece, tokens)) == text.encode("utf-8", "replace")


def test_vocabularies_and_facts_agree(shared, llama):
    assert all_pieces(shared) == all_pieces(llama)
    one, other = shared.facts, llama.facts
    for name in ("trained_context", "vocab_size", "chat_template", "bos_token", "bos_text", "eos_text"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.eos_tokens <= other.eos_tokens  # llama.cpp takes <reponame> for an end of a turn, too
    assert set(one.special_tokens) == set(other.special_tokens)


@pytest.mark.timeout(600)
def test_prompts_and_greedy_answers_agree(driver, llama):
    other = type(driver)(llama)
    for question in [*QUESTIONS, "<|im_end|> is only text", "Grüße 👋🏽 漢字"]:
        assert prompt(driver.engine, question) == prompt(llama, question)
    for question in QUESTIONS:
        tokens = prompt(llama, question)
        [mine], [theirs] = (drive.run(tokens, tokens=TOKENS) for drive in (driver, other))
        for one, two in zip(mine.outs, theirs.outs, strict=True):
            assert one.top[0][1] == pytest.approx(two.top[0][1], abs=CLOSE)
            if one.token != two.token:  # only where both find two tokens almost as likely
                assert max(out.top[0][1] - out.top[1][1] for out in (one, two)) < CLOSE
                break
