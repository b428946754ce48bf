"""Replies and vectors: as llama.cpp's and sentence-transformers' are, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from myllm_onnx.engine import OnnxEngine

from myllm_core import TokenEngine
from myllm_core.engine import Sequence
from myllm_core.errors import ContextLengthError
from myllm_core.testing.engine.given import GREEDY
from support.cases import case_in
from support.greedy import assert_answers_agree, assert_prompts_agree
from support.held import assert_replies_follow
from support.vectors import assert_vectors_agree

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]  # the models are made when they are first needed

Written = list[tuple[int, float]]
"""Tokens and their log probabilities."""

SAME = 0.02
"""Of log probabilities: what another order of sums may change."""


def onnx(folder: Path, **options: Any) -> OnnxEngine:
    engine = case_in(folder, OnnxEngine, {"intra_op_num_threads": 1, "max_length": 1024, **options}).load()
    assert isinstance(engine, OnnxEngine)
    return engine


@pytest.fixture(scope="module")
def genai(smollm2_genai: Path) -> Iterator[OnnxEngine]:
    engine = onnx(smollm2_genai)
    yield engine
    engine.close()


@pytest.fixture
def tiny(tiny_onnx: Path) -> Iterator[OnnxEngine]:
    engine = onnx(tiny_onnx, chunk_size=7)
    yield engine
    engine.close()


def test_prompts_have_the_same_tokens_as_with_llamacpp(genai):
    assert_prompts_agree(genai)
    assert genai.facts.eos_tokens >= {2}


def test_greedy_replies_are_llamacpps(smollm2_onnx):
    engine = onnx(smollm2_onnx, max_batch_size=8)
    try:
        assert_prompts_agree(engine)
        assert_answers_agree(engine, SAME)
    finally:
        engine.close()


def test_replies_follow_their_schema(genai):
    assert_replies_follow(genai)


def run(
    engine: TokenEngine, prompts: dict[int, list[int]], tokens: int, cancel: int = 0
) -> dict[int, list[tuple[int, float]]]:
    """What sequences write side by side; one may be dropped when it has written two."""
    found: dict[int, list[tuple[int, float]]] = {number: [] for number in prompts}
    for number, ids in prompts.items():
        engine.add(Sequence(number, ids, GREEDY, tokens, logprobs=2))
    left = set(prompts)
    while left:
        for out in engine.step():
            assert out.error is None, out.error
            found[out.sequence_id].append((out.token, out.logprob))
            if len(found[out.sequence_id]) == (2 if out.sequence_id == cancel else tokens):
                engine.cancel(out.sequence_id)
                left.discard(out.sequence_id)
    return found


def same(one: Written, other: Written) -> bool:
    return bool(np.allclose(one, other, rtol=0, atol=1e-3))


def test_what_else_is_in_the_batch_changes_nothing(tiny):
    prompts = {
        number: list(range(100 * number, 100 * number + length)) for number, length in ((1, 3), (2, 40), (3, 18))
    }
    alone = {number: run(tiny, {number: ids}, 12)[number] for number, ids in prompts.items()}
    together = run(tiny, prompts, 12, cancel=2)
    assert same(together[1], alone[1]) and same(together[3], alone[3])


def test_what_was_read_is_kept_for_prompts_that_begin_alike(tiny):
    ids = list(range(500, 560))
    first = run(tiny, {1: ids}, 6)[1]
    tiny.add(Sequence(2, [*ids, first[0][0], 77, 78], GREEDY, 4))
    outs = [out for _ in range(3) for out in tiny.step()]
    assert outs[0].cached_tokens == len(ids) + 1
    tiny.cancel(2)
    assert same(run(tiny, {3: ids}, 6)[3], first)


def test_a_long_prompt_doesnt_hold_up_others(tiny):
    tiny.add(Sequence(1, [5, 6, 7], GREEDY, 100))
    assert [out.sequence_id for out in tiny.step()] == [1]
    tiny.add(Sequence(2, list(range(70)), GREEDY, 100))
    for _ in range(9):
        assert [out.sequence_id for out in tiny.step()] == [1]
    assert [out.sequence_id for out in tiny.step()] == [1, 2]


def test_vectors_are_sentence_transformers(minilm_onnx):
    engine = onnx(minilm_onnx)
    try:
        assert_vectors_agree(engine, 1e-6)
        with pytest.raises(ContextLengthError):
            engine.embed(["word " * 300])
    finally:
        engine.close()
