"""Options that reach the template or the logits: the reasoning effort, and biases of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from myllm_core import ChatRequest, CompletionRequest, Message, Sampling
from myllm_core.errors import InvalidRequest, UnsupportedError
from myllm_core.options import parse_options, sampling
from myllm_core.sampler import Sampler

ASK = (Message("user", "hi"),)


def test_the_effort_reaches_a_template_that_knows_of_it(byte_engine):
    for source, effort, shown in (
        ("{{ reasoning_effort | default('medium') }}|{{ messages[0].content }}", "high", "high|hi"),
        ("{{ reasoning_effort | default('medium') }}|{{ messages[0].content }}", None, "medium|hi"),
        ("{% if enable_thinking is false %}quick{% endif %}{{ messages[0].content }}", "none", "quickhi"),
        ("{% if enable_thinking is false %}quick{% endif %}{{ messages[0].content }}", "low", "hi"),
    ):
        engine = byte_engine(chat_template=source)
        list(engine.chat(ChatRequest(ASK, reasoning_effort=effort)))
        assert bytes(engine.added[0].tokens[1:]).decode() == shown
    with pytest.raises(UnsupportedError, match="reasoning_effort"):
        list(byte_engine(chat_template="{{ messages[0].content }}").chat(ChatRequest(ASK, reasoning_effort="low")))


def test_a_bias_is_added_to_its_tokens_and_to_no_others():
    logits = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    before = logits.copy()

    def best(**bias):
        how = sampling(parse_options({"temperature": 0, "logit_bias": bias}), ["temperature", "logit_bias"], "x")
        return Sampler(how, 100, [1]).choose(logits)

    assert best() == 0
    assert best(**{"0": -100}) == 1
    assert best(**{"0": -100, "3": 5}) == 3
    assert best(**{"2": 2.5, "1": 0.1}) == 2
    assert (logits == before).all()


def test_a_bias_of_a_token_that_there_is_not_is_refused(byte_engine):
    with pytest.raises(InvalidRequest, match="no token 260.*0 to 259"):
        list(byte_engine().chat(ChatRequest(ASK, Sampling(logit_bias=((5, 1.0), (260, 1.0))))))


def test_tokens_are_a_prompt_as_they_are(byte_engine):
    engine = byte_engine()
    list(engine.complete(CompletionRequest("", tokens=(258, 65))))
    assert engine.added[0].tokens == [258, 65]
    with pytest.raises(InvalidRequest, match="no token 300"):
        list(engine.complete(CompletionRequest("", tokens=(300,))))
