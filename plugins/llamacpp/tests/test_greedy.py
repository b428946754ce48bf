"""The record that other engines are held to, see `tests/support/greedy.py`."""

from __future__ import annotations

import pytest

from support.greedy import assert_answers_agree, assert_prompts_agree

from .conftest import TOLERANCE

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]  # the model is made when it is first needed


def test_what_is_recorded_is_what_llama_cpp_writes(load, smollm2_f32_gguf):
    engine = load(smollm2_f32_gguf, n_ctx=1024, type_k="f32", type_v="f32").engine
    assert_prompts_agree(engine)
    assert_answers_agree(engine, TOLERANCE)
