"""The real test model as Optimum exports it: the same tokens in and out as with llama.cpp, and schemas that hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from myllm_optimum.engine import OptimumEngine

from support.cases import case_in
from support.greedy import assert_answers_agree, assert_prompts_agree
from support.held import assert_replies_follow

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]  # the model is made when it is first needed

SAME = 0.02
"""Of log probabilities: what another order of sums may change."""


@pytest.fixture(scope="module")
def engine(smollm2_onnx: Path) -> Iterator[OptimumEngine]:
    loaded = case_in(smollm2_onnx, OptimumEngine, {"max_length": 1024, "intra_op_num_threads": 1}).load()
    assert isinstance(loaded, OptimumEngine)
    yield loaded
    loaded.close()


def test_prompts_and_greedy_answers_are_llamacpps(engine: OptimumEngine) -> None:
    assert_prompts_agree(engine)
    assert_answers_agree(engine, SAME)


def test_replies_follow_their_schema(engine: OptimumEngine) -> None:
    assert_replies_follow(engine)
