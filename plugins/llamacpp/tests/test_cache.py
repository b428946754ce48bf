"""What stays in the KV cache: prefixes that are used again, and who gives way when it is full."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm_core.types import Sampling

STORY = "Once upon a time there was a fox who lived in a dark forest and was afraid of nothing but the rain. "


def cells(engine):
    """Tokens in the cache by slot, as llama.cpp counts them, next to what the slot believes."""
    slots = engine._scheduler.slots._slots
    context = engine._context
    return [(context.last(slot.id) + 1, slot.cached) for slot in slots]


def is_consistent(engine):
    return all(native == believed for native, believed in cells(engine))


def test_the_second_turn_pays_only_for_what_is_new(load, same):
    driver = load()
    first = driver.engine.tokenize(STORY * 3, False)
    [reply] = driver.run(first, tokens=10)
    assert reply.cached == 0
    longer = first + reply.tokens + driver.engine.tokenize(" What happened next?", False)
    before = driver.engine.stats.prompt_tokens
    [second] = driver.run(longer, tokens=10)
    assert second.cached == len(first) + 9  # the last token was written, never read
    assert driver.engine.stats.prompt_tokens - before == len(longer) - second.cached
    assert is_consistent(driver.engine)
    same(second, load(n_parallel=1).run(longer, tokens=10)[0], tolerance=0.5)


def words(first, count):
    """A prompt for the tiny model; another ``first``, another prompt from the begin on."""
    return [10 + (37 * first + 5 * step) % 270 for step in range(count)]


@pytest.fixture
def tiny_driver(load, tiny):
    return lambda **options: load(tiny["llama"], **({"n_ctx": 512} | options))


def test_the_same_prompt_again_reads_one_token(tiny_driver, same):
    driver = tiny_driver()
    first, again = driver.run(words(1, 50), tokens=8)[0], driver.run(words(1, 50), tokens=8)[0]
    assert again.cached == 49
    same(first, again)


def test_a_running_sequence_lends_its_prefix(tiny_driver, same):
    driver = tiny_driver()
    system = words(1, 100)
    one = driver.start(system + words(2, 20), tokens=30)
    while not driver.replies[one].outs:
        driver.step()
    [two] = driver.run(system + words(3, 20), tokens=8)
    driver.finish()
    assert two.cached == len(system)
    same(two, tiny_driver().run(system + words(3, 20), tokens=8)[0])
    same(driver.replies[one], tiny_driver().run(system + words(2, 20), tokens=30)[0])
    assert is_consistent(driver.engine)


def test_many_may_run_beside_each_other_when_they_share_their_beginning(tiny_driver):
    driver = tiny_driver(n_parallel=8)
    system = words(1, 300)
    first = driver.start(system + words(2, 3), tokens=40)
    while not driver.replies[first].outs:
        driver.step()
    numbers = [driver.start(system + words(number, 3), tokens=5) for number in range(3, 10)]
    driver.step()
    assert all(driver.replies[number].outs for number in numbers[:2])
    driver.finish()
    assert driver.engine.stats.preemptions == 0


def test_a_short_common_beginning_does_not_cost_a_long_conversation(tiny_driver):
    driver = tiny_driver()
    system = words(1, 10)
    long = system + words(2, 200)
    driver.run(long, tokens=2)
    [other] = driver.run(system + words(3, 20), tokens=2)
    assert other.cached == len(system)
    [back] = driver.run(long, tokens=2)
    assert back.cached == len(long) - 1


def test_without_a_unified_cache_slots_keep_to_themselves(tiny_driver, same):
    driver = tiny_driver(kv_unified=False, n_ctx=1024, n_parallel=2)
    assert driver.engine.facts.context_size == 512
    one, two = driver.run(words(1, 100), words(1, 100), tokens=8)
    assert (one.cached, two.cached) == (0, 0)
    same(one, two)
    assert driver.run(words(1, 100), tokens=2)[0].cached == 99


def test_a_full_cache_sets_the_newest_back_and_loses_nothing(tiny_driver, same):
    driver = tiny_driver(n_parallel=4, n_batch=128)
    prompts = [words(number, 60) for number in range(1, 5)]
    replies = driver.run(*prompts, tokens=120)  # 720 tokens in all, for 512 cells
    stats = driver.engine.stats
    assert stats.preemptions > 0
    assert stats.generated_tokens == 480
    assert is_consistent(driver.engine)
    alone = tiny_driver(n_parallel=1)
    for prompt, reply in zip(prompts, replies, strict=True):
        same(reply, alone.run(prompt, tokens=120)[0])


def test_a_seeded_sequence_that_was_set_back_writes_what_it_would_alone(tiny_driver):
    sampling = Sampling(seed=4, repeat_penalty=1.2, top_k=5)
    exact = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}  # a draw between equals turns on the last digit
    driver = tiny_driver(n_parallel=4, n_batch=128, **exact)
    others = [driver.start(words(number, 60), tokens=120) for number in range(1, 4)]
    [seeded] = driver.run(words(9, 60), tokens=120, sampling=sampling)
    assert driver.engine.stats.preemptions > 0
    assert all(len(driver.replies[number].outs) == 120 for number in others)
    [alone] = tiny_driver(n_parallel=1, **exact).run(words(9, 60), tokens=120, sampling=sampling)
    assert seeded.tokens == alone.tokens


def test_resident_prefixes_give_way_before_anyone_is_set_back(tiny_driver):
    driver = tiny_driver(n_parallel=4, cache_ram=0)
    for number in range(1, 5):
        driver.run(words(number, 110), tokens=2)
    driver.run(words(9, 300), tokens=50)
    assert driver.engine.stats.evictions > 0
    assert driver.engine.stats.preemptions == 0
    assert is_consistent(driver.engine)


def test_a_sequence_that_was_set_back_can_be_cancelled(tiny_driver):
    driver = tiny_driver(n_parallel=4, n_batch=128)
    numbers = [driver.start(words(number, 60), tokens=400) for number in range(1, 5)]
    while not driver.engine.stats.preemptions:
        driver.step()
    for number in reversed(numbers):
        driver.cancel(number)
    assert driver.engine.step() == []
    assert is_consistent(driver.engine)


def test_streams_are_not_held_up_by_a_long_prompt(load):
    driver = load()
    stream = driver.start(STORY, tokens=10_000)
    driver.step()
    reader = driver.start(STORY * 8, tokens=1)
    steps = 0
    while not driver.replies[reader].outs:
        assert [out.sequence_id for out in driver.step()].count(stream) == 1
        steps += 1
    assert steps > 3


prompts = st.lists(st.integers(100, 120), min_size=1, max_size=60)
arrivals = st.lists(
    st.tuples(st.integers(0, 6), prompts, st.integers(1, 12), st.one_of(st.none(), st.integers(0, 8))),
    min_size=1,
    max_size=7,
)


@given(arrivals)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_and_goes_each_writes_what_it_would_alone(tiny, load_once, same, programme):
    """Each arrival: steps to wait before it, prompt, tokens to write, and steps after which it is cancelled."""
    driver, alone = load_once(tiny["llama"])
    numbers, cancels = [], []
    for wait, prompt, tokens, patience in programme:
        for _ in range(wait):
            driver.step()
        numbers.append(driver.start(prompt, tokens=tokens))
        cancels.append(None if patience is None else patience)
    for step in range(9):
        for number, patience in zip(numbers, cancels, strict=True):
            if patience == step:
                driver.cancel(number)
        driver.step()
    driver.finish()
    assert is_consistent(driver.engine)
    for number, (_, prompt, _, _) in zip(numbers, programme, strict=True):
        reply = driver.replies[number]
        if reply.outs:
            same(reply, alone.run(prompt, tokens=len(reply.outs))[0])
