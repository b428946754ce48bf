"""Choosing tokens: the right ones are left, each as often as it should be, and the logits stay what they were."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_core.errors import EngineError
from myllm_core.sampler import Sampler, best, log_probabilities
from myllm_core.types import Sampling


def logits_of(seed, size, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def probabilities(logits, sampling, prompt=()):
    """What llama.cpp's chain of penalties, top-k, top-p, min-p and temperature leaves, the slow way."""
    logits = logits.astype(np.float64).copy()
    seen = Counter(prompt[-sampling.repeat_last_n :] if sampling.repeat_last_n else ())
    for token, count in seen.items():
        logits[token] *= sampling.repeat_penalty if logits[token] <= 0 else 1 / sampling.repeat_penalty
        logits[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    order = np.argsort(-logits, kind="stable")
    left = order[: sampling.top_k] if sampling.top_k else order
    weights = np.exp(logits[left] - logits[left[0]])
    count = len(left)
    if sampling.top_p < 1:
        count = int(np.searchsorted(weights.cumsum(), sampling.top_p * weights.sum())) + 1
    if sampling.min_p:
        count = min(count, int((weights >= sampling.min_p).sum()))
    left = left[:count]
    weights = np.exp((logits[left] - logits[left[0]]) / sampling.temperature)
    return dict(zip(left.tolist(), (weights / weights.sum()).tolist(), strict=True))


HOW = [
    Sampling(),
    Sampling(temperature=1.5),
    Sampling(top_k=0, top_p=1.0, temperature=0.5),
    Sampling(top_k=0, top_p=0.9),
    Sampling(top_k=0, top_p=1.0, min_p=0.1),
    Sampling(top_k=0, top_p=0.8, min_p=0.02),
    Sampling(top_k=5, top_p=0.9, min_p=0.05),
    Sampling(top_k=1000, top_p=0.99, temperature=2.0),
    Sampling(repeat_penalty=1.5, frequency_penalty=0.3, presence_penalty=-0.4, repeat_last_n=5),
]
PROMPT = [3, 1, 3, 3, 8, 1, 7]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("size", [50, 700])
def test_tokens_are_drawn_as_often_as_their_probability_says(how, size):
    logits = logits_of(size, size, 2.0)
    expected = probabilities(logits, how, PROMPT)
    drawn = Counter(Sampler(replace(how, seed=seed), 4096, PROMPT).choose(logits) for seed in range(4000))
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        spread = math.sqrt(share * (1 - share) / 4000)
        assert abs(drawn[token] / 4000 - share) < 5 * spread + 1e-3


@given(
    st.integers(0, 1000),
    st.sampled_from([1, 63, 64, 65, 1000, 5000]),
    st.floats(0.01, 10),
    st.sampled_from([0, 1, 2, 40, 10_000]),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_only_tokens_that_are_left_are_chosen(seed, size, spread, top_k, top_p, min_p):
    logits = logits_of(seed, size, spread)
    sampler = Sampler(Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed), 4096, [])
    loose = Sampling(temperature=1.0, top_k=top_k, top_p=min(1.0, top_p + 1e-5), min_p=max(0.0, min_p - 1e-5))
    left = probabilities(logits, loose)
    assert all(sampler.choose(logits) in left for _ in range(5))


def test_the_logits_stay_what_they_were():
    logits = logits_of(1, 500)
    before = logits.copy()
    sampler = Sampler(Sampling(repeat_penalty=2.0, presence_penalty=1.0), 4096, [1, 2, 3, 400])
    for _ in range(50):
        sampler.choose(logits)
    assert (logits == before).all()


def test_penalties_forget_what_left_their_window():
    logits = np.zeros(10, np.float32)
    logits[4] = 1.0
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=2.0, repeat_last_n=2), 4096, [])
    assert [sampler.choose(logits) for _ in range(6)] == [4, 0, 1, 4, 0, 1]


class Mask:
    """Allows some tokens, and counts how often it is asked for all of them."""

    def __init__(self, size, tokens):
        self.bits, self.tokens, self.asked = np.zeros(size, np.uint8), tokens, 0
        self.bits[tokens] = 1

    def forced(self, token):
        return []

    def allows(self, token):
        return token in self.tokens

    def mask(self):
        self.asked += 1
        return np.packbits(self.bits, bitorder="little").tobytes()


@pytest.mark.parametrize("how", [Sampling(temperature=0.0), *HOW], ids=str)
def test_only_what_is_allowed_is_chosen(how):
    logits = logits_of(2, 700)
    allowed = [3, 99, 698]
    for seed in range(20):
        sampler = Sampler(replace(how, seed=seed), 4096, PROMPT)
        assert sampler.choose(logits, Mask(700, allowed)) in allowed
    everything = Mask(700, list(range(700)))
    Sampler(how, 4096, PROMPT).choose(logits, everything)
    assert everything.asked == 0
    with pytest.raises(EngineError, match="no token fits"):
        Sampler(how, 4096, PROMPT).choose(logits, Mask(700, []))


def test_a_choice_under_a_mask_has_the_distribution_of_what_is_allowed():
    logits = logits_of(3, 50, 1.0)
    how, allowed = Sampling(temperature=1.0, top_k=0, top_p=1.0), [1, 2, 3]
    drawn = Counter(Sampler(replace(how, seed=seed), 99, []).choose(logits, Mask(50, allowed)) for seed in range(3000))
    weights = np.exp(logits[allowed])
    for token, share in zip(allowed, weights / weights.sum(), strict=True):
        assert drawn[token] / 3000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("how", [Sampling(temperature=0.0), *HOW], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_an_error(how, bad):
    logits = logits_of(4, 300)
    logits[123] = bad
    with pytest.raises(EngineError, match="isn't a number"):
        Sampler(how, 4096, []).choose(logits)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_tokens_of_no_probability_are_never_drawn(how):
    logits = np.full(1000, -np.inf, np.float32)
    logits[[5, 999]] = 1.0, 0.9
    sampler = Sampler(how, 4096, [])
    assert {sampler.choose(logits) for _ in range(200)} <= {5, 999}


@given(st.integers(0, 1000), st.integers(1, 400), st.integers(1, 400))
@settings(deadline=None)
def test_the_best_are_found_without_sorting_all(seed, size, count):
    logits = np.round(logits_of(seed, size), 1)  # with equal ones
    found = best(logits, count)
    assert logits[found].tolist() == sorted(logits.tolist(), reverse=True)[:count]
    assert len(set(found.tolist())) == min(count, size)


def test_log_probabilities_are_those_of_a_plain_softmax():
    logits = logits_of(5, 49152, 4.0)
    plain = logits.astype(np.float64)
    expected = plain - plain.max() - np.log(np.exp(plain - plain.max()).sum())
    chosen, top = log_probabilities(logits, 77, 20)
    assert chosen == pytest.approx(expected[77], abs=1e-4)
    assert [token for token, _ in top] == np.argsort(-expected)[:20].tolist()
    assert [value for _, value in top] == pytest.approx(np.sort(expected)[::-1][:20].tolist(), abs=1e-4)
    assert log_probabilities(logits, 77, 0) == (chosen, [])
    assert len(log_probabilities(logits[:10], 7, 20)[1]) == 10
