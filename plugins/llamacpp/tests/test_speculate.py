"""Guessed tokens: they change no text, and are only made where they pay."""

from __future__ import annotations

import numpy as np
import pytest
from myllm_llamacpp.speculate import LONGEST, Lookup, Rates

from myllm_core import Sequence
from myllm_core.errors import ContextLengthError
from myllm_core.types import Sampling

CODE = "\n".join(f"item {number}: value_{number * 7 % 13} = compute({number}, {number + 1})" for number in range(8))
PROMPTS = [
    f"{CODE}\nThe same again:\nitem 0: value_0 = compute(0, 1)\nitem 1:",
    "Once upon a time there was a little girl who lived in",
    "a b c d a b c d a b c d a b",
]


def words(first, count):
    return [10 + (37 * first + 5 * step) % 250 for step in range(count)]


def is_consistent(engine):
    slots = engine._scheduler.slots._slots
    return all(engine._context.last(slot.id) + 1 == slot.cached for slot in slots)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(seed=3), Sampling(seed=4, repeat_penalty=1.1)]
)
def test_the_real_model_writes_the_same_with_guesses_and_without(load, sampling):
    guessing, plain = load(speculation="lookup"), load(speculation="off")
    for prompt in PROMPTS:
        [with_guesses] = guessing.run(prompt, tokens=40, sampling=sampling)
        [without] = plain.run(prompt, tokens=40, sampling=sampling)
        assert with_guesses.tokens == without.tokens
        assert [out.logprob for out in with_guesses.outs] == [out.logprob for out in without.outs]
    stats = guessing.engine.stats
    assert stats.guessed_tokens > stats.right_guesses > 3
    assert stats.steps < plain.engine.stats.steps
    assert is_consistent(guessing.engine)


@pytest.mark.parametrize("mode", ["lookup", "auto"])
def test_several_at_once_write_what_they_would_without_guesses(load, tiny, mode):
    sampling = [Sampling(temperature=0.0), Sampling(seed=1), Sampling(seed=2, temperature=0.3)]
    texts = []
    for speculation in (mode, "off"):
        driver = load(tiny["llama"], speculation=speculation, n_ctx=1024, n_parallel=4)
        numbers = [
            driver.start(words(number, 20) * 2, tokens=60, sampling=sampling[number % 3]) for number in range(6, 10)
        ]
        driver.finish()
        assert is_consistent(driver.engine)
        texts.append([driver.replies[number].tokens for number in numbers])
    assert texts[0] == texts[1]


def test_the_next_turn_goes_on_from_guessed_tokens(load, tiny, same):
    driver = load(tiny["llama"], speculation="lookup")
    [first] = driver.run(words(1, 20) * 3, tokens=50)
    goes_on = words(1, 20) * 3 + first.tokens + [20, 21]
    [second] = driver.run(goes_on, tokens=10)
    assert second.cached >= 60 + 49
    same(second, load(tiny["llama"], speculation="off").run(goes_on, tokens=10)[0])


def test_no_more_is_written_than_was_asked_for_or_fits(load, tiny):
    driver = load(tiny["llama"], speculation="lookup", n_ctx=256)
    looping = [11, 12, 13] * 20
    for most in (1, 2, 3, 7):
        number = driver.start(looping, tokens=most)
        driver.finish()
        assert len(driver.replies[number].outs) == most
    driver.start(looping, tokens=1000)
    driver.finish()
    [reply] = [reply for reply in driver.replies.values() if reply.error is not None]
    assert isinstance(reply.error, ContextLengthError)
    assert len(reply.outs) == 256 - 60 + 1


def test_guesses_give_way_when_the_cache_is_full(load, tiny, same):
    driver = load(tiny["llama"], speculation="lookup", n_ctx=256, n_parallel=4, n_batch=64)
    prompts = [words(number, 5) * 4 for number in range(4)]
    replies = driver.run(*prompts, tokens=110)
    assert driver.engine.stats.preemptions > 0
    assert is_consistent(driver.engine)
    alone = load(tiny["llama"], speculation="off", n_ctx=256, n_parallel=1)
    for prompt, reply in zip(prompts, replies, strict=True):
        same(reply, alone.run(prompt, tokens=110)[0])


@pytest.mark.parametrize("kind", ["window", "mamba"])
def test_sequences_that_cannot_be_cut_are_never_guessed(load, tiny, kind):
    driver = load(tiny[kind], speculation="lookup")
    driver.run([11, 12, 13] * 10, tokens=30)
    assert driver.engine.stats.guessed_tokens == 0


class Everything:
    def forced(self, token):
        return []

    def allows(self, token):
        return True

    def mask(self):
        raise AssertionError("nothing needs to be ruled out")


def test_a_constrained_sequence_is_never_guessed(load, tiny):
    driver = load(tiny["llama"], speculation="lookup")
    driver.engine.add(Sequence(99, [11, 12, 13] * 10, Sampling(temperature=0.0), 20, None, Everything()))
    for _ in range(20):
        assert len(driver.engine.step()) == 1
    assert driver.engine.stats.guessed_tokens == 0


def guessed(prompt, text, rates):
    lookup, tokens = Lookup(1000, len(prompt)), np.array([*prompt, *text], np.int32)
    for end in range(len(prompt), len(tokens) + 1):
        lookup.follow(tokens[:end], rates)
    return lookup.guess(tokens, LONGEST, rates).tolist()


def test_what_came_after_the_same_words_is_guessed():
    always = Rates(always=True)
    always.prepare(1, None)
    assert guessed([1, 2, 3, 4, 5, 6, 7], [1, 2, 3], always) == [4, 5, 6, 7, 1, 2, 3]
    assert guessed([1, 2, 3, 4, 9, 2, 3, 5, 6], [8, 2, 3], always)[:1] == [5]  # the last time counts
    assert guessed([1, 2, 3, 4, 9, 2, 3, 5, 6], [1, 2, 3], always)[:1] == [4]  # but three tokens more than two
    assert guessed([1, 2, 3, 4], [5, 6, 7], always) == []
    assert guessed([], [1], always) == []


def learned(right, row, plain=0.01, streams=1, steps=200):
    """The longest guess after that many steps in which a share of the guesses was right."""
    rates = Rates()
    for step in range(steps):
        rates.saw(8, step % 10 < right * 10)
        rates.measured(streams, 0, 0, plain)
    return rates.worth(8) if rates.prepare(streams, row) else 0


def test_guesses_are_made_where_they_pay():
    assert learned(right=1.0, row=0.0001) == LONGEST
    assert learned(right=1.0, row=0.005) == LONGEST
    assert 1 <= learned(right=0.8, row=0.005) <= 3
    assert learned(right=0.5, row=0.005) == 0
    assert learned(right=1.0, row=0.01) == 0
    assert learned(right=1.0, row=0.005, plain=0.02, streams=8) == 0
    assert learned(right=1.0, row=0.001, plain=0.02, streams=8) == LONGEST
    assert learned(right=1.0, row=0.001, steps=0) == 0


def test_a_guess_costs_at_least_what_another_stream_adds():
    rates = Rates()
    for _ in range(200):
        rates.saw(8, True)
        rates.measured(4, 0, 0, 0.020)
        rates.measured(8, 0, 0, 0.036)  # 4 ms more for each, though a prompt's token takes 3 ms
    assert not rates.prepare(8, 0.003)
    assert rates.prepare(4, 0.003)


def test_guesses_that_do_not_pay_in_the_end_are_given_up_for_a_while():
    rates = Rates()
    rates.measured(1, 0, 0, 0.01)
    for _ in range(100):
        rates.saw(8, True)
    made = 0
    for _ in range(300):
        if rates.prepare(1, 0.001) and (count := rates.worth(8)):
            made += 1
            rates.measured(1, count, 0, 0.01 + count * 0.001)  # none is right, whatever was seen
        else:
            rates.measured(1, 0, 0, 0.01)
    assert made < 100
    for _ in range(5000):
        rates.measured(1, 0, 0, 0.01)
    assert rates.prepare(1, 0.001)


def test_a_plain_step_comes_now_and_then():
    rates = Rates()
    rates.measured(1, 0, 0, 0.01)
    plain = 0
    for _ in range(170):
        if rates.prepare(1, 0.0001):
            rates.measured(1, 8, 8, 0.011)
        else:
            plain += 1
            rates.measured(1, 0, 0, 0.01)
    assert plain == 10
