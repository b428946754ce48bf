"""Sequences that left the cache and come back from memory."""

from __future__ import annotations

import numpy as np
import pytest
from myllm_llamacpp.states import State, States, automatic_limit

from myllm_core.types import Sampling


def words(first, count):
    """A prompt for the tiny models; another ``first``, another prompt from the begin on."""
    return [10 + (37 * first + 5 * step) % 250 for step in range(count)]


def states_of(driver):
    return driver.engine._scheduler.slots.states


def is_consistent(engine):
    slots = engine._scheduler.slots._slots
    return all(engine._context.last(slot.id) + 1 == slot.cached for slot in slots)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("kind", ["llama", "window", "mamba"])
def test_a_conversation_that_had_to_leave_comes_back(load, tiny, same, kind, unified):
    options = {"n_ctx": 1024, "n_parallel": 2, "kv_unified": unified}
    driver = load(tiny[kind], **options)
    [first] = driver.run(words(1, 300), tokens=10)
    for number in (2, 3, 4):
        driver.run(words(number, 300), tokens=10)
    goes_on = words(1, 300) + first.tokens + [20, 21, 22]
    [second] = driver.run(goes_on, tokens=10)
    assert second.cached == 309
    assert is_consistent(driver.engine)
    same(second, load(tiny[kind], **options).run(goes_on, tokens=10)[0])


def test_without_memory_for_copies_nothing_comes_back(load, tiny):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=2, cache_ram=0)
    for number in (1, 2, 3):
        driver.run(words(number, 300), tokens=2)
    assert driver.run(words(1, 300), tokens=2)[0].cached == 0
    assert states_of(driver).size == 0


@pytest.mark.parametrize(("memory", "left"), [(64, 0), (0, 3)])
def test_those_that_run_need_not_look_through_those_that_stay(load, tiny, same, memory, left):
    driver = load(tiny["llama"], n_ctx=2048, n_parallel=8, cache_ram=memory)
    replies = [driver.run(words(number, 200), tokens=10)[0] for number in (1, 2, 3)]
    driver.run([*words(4, 30)], tokens=10)
    assert len(driver.engine._scheduler.slots.resident()) == left + 1
    assert is_consistent(driver.engine)
    goes_on = words(1, 200) + replies[0].tokens + [20, 21]
    [second] = driver.run(goes_on, tokens=10)
    assert second.cached == 209
    same(second, load(tiny["llama"], n_ctx=2048, n_parallel=1).run(goes_on, tokens=10)[0])


def test_copies_stay_within_the_limit_and_the_oldest_go_first(load, tiny):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=2, cache_ram=1)
    for number in range(12):
        driver.run(words(number, 400), tokens=2)
    assert 2**19 < states_of(driver).size <= 2**20
    assert driver.run(words(10, 400), tokens=2)[0].cached == 399
    assert driver.run(words(0, 400), tokens=2)[0].cached == 0


def test_a_copy_that_shares_a_beginning_is_used_for_it_and_stays(load, tiny, same):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=1)
    driver.run(words(1, 400), tokens=2)
    driver.run(words(2, 400), tokens=2)
    turns_off = words(1, 150) + words(3, 50)
    [branch] = driver.run(turns_off, tokens=10)
    assert branch.cached == 150
    same(branch, load(tiny["llama"], n_ctx=512).run(turns_off, tokens=10)[0])
    assert driver.run(words(1, 400), tokens=2)[0].cached == 399


def test_a_sequence_that_grew_is_kept_once(load, tiny):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=1)
    for count in (100, 200, 300):
        driver.run(words(1, count), tokens=2)
        driver.run(words(2, 400), tokens=2)
    assert sum(int(state.tokens[0]) == words(1, 1)[0] for state in states_of(driver)) == 1


def test_a_short_beginning_is_not_worth_a_copy(load, tiny):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=1)
    driver.run(words(1, 60), tokens=2)
    driver.run(words(2, 60), tokens=2)
    assert states_of(driver).size == 0


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(seed=3)])
def test_a_sequence_that_was_set_back_reads_nothing_again(load, tiny, same, sampling):
    exact = {"flash_attn": "off", "type_k": "f32", "type_v": "f32", "n_batch": 128, "n_ctx": 512}
    driver = load(tiny["llama"], n_parallel=4, **exact)
    prompts = [words(number, 70) for number in range(1, 5)]
    replies = driver.run(*prompts, tokens=120, sampling=sampling)
    stats = driver.engine.stats
    assert stats.preemptions > 0
    assert stats.prompt_tokens <= 4 * 70 + 2 * stats.preemptions
    assert is_consistent(driver.engine)
    alone = load(tiny["llama"], n_parallel=1, **exact)
    for prompt, reply in zip(prompts, replies, strict=True):
        same(reply, alone.run(prompt, tokens=120, sampling=sampling)[0])


def test_a_copy_that_finds_no_room_beside_those_that_run_is_left_where_it_is(load, tiny, same):
    driver = load(tiny["llama"], n_ctx=512, n_parallel=3)
    driver.run(words(1, 450), tokens=2)
    driver.run(words(2, 450), tokens=2)
    busy = driver.start(words(3, 200), tokens=60)
    driver.step()
    [branch] = driver.run(words(1, 120), tokens=5)
    assert branch.error is None
    driver.finish()
    assert len(driver.replies[busy].outs) == 60
    assert is_consistent(driver.engine)
    same(branch, load(tiny["llama"], n_ctx=512).run(words(1, 120), tokens=5)[0])


def test_the_limit_counts_bytes_and_use():
    states = States(100)
    first, second, third = (State(np.arange(n, dtype=np.int32), 0, np.zeros(40, np.uint8), n) for n in (1, 2, 3))
    states.put(first)
    states.put(second)
    first.used = 2.5
    states.put(third)
    assert list(states) == [first, third]
    assert not states.takes(101)
    assert not States(0).takes(1)
    assert 0 < automatic_limit() <= 4 * 2**30
