"""Context shift: going on when a context is full, and saying what was forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.errors import InvalidOption, UnsupportedError
from myllm_core.types import ChatRequest, CompletionRequest, Finish, Message, Sampling, TextDelta

CONTEXT = 256
SHIFTING = {"n_ctx": CONTEXT, "context_shift": True, "speculation": "off"}
GREEDY = Sampling(temperature=0.0)


def words(first, count):
    return [10 + (37 * first + 5 * step) % 250 for step in range(count)]


def forgotten(reply):
    return sum(out.forgotten for out in reply.outs)


def plain_shift(engine, ids, count, keep):
    """What a loop over llama.cpp's simplest calls writes that shifts as llama.cpp's own examples do."""
    from llama_cpp import llama_cpp as api

    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = CONTEXT
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 1
    context = api.llama_init_from_model(engine._model.handle, params)
    memory, written, past = api.llama_get_memory(context), [], 0
    tokens = list(ids)
    for _ in range(count):
        if past + len(tokens) > CONTEXT:
            end = keep + (past + len(tokens) - keep) // 2
            assert api.llama_memory_seq_rm(memory, 0, keep, end)
            api.llama_memory_seq_add(memory, 0, end, -1, keep - end)
            past -= end - keep
        array = (api.llama_token * len(tokens))(*tokens)
        assert api.llama_decode(context, api.llama_batch_get_one(array, len(tokens))) == 0
        past += len(tokens)
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (engine.facts.vocab_size,))
        tokens = [int(logits.argmax())]
        written += tokens
    api.llama_free(context)
    return written


@pytest.mark.parametrize(("kind", "keep"), [("llama", 0), ("llama", 4), ("llama", -1), ("smollm2", 4)])
def test_it_writes_what_llama_cpp_would(load, tiny, smollm2_gguf, kind, keep):
    driver = load(tiny.get(kind, smollm2_gguf), **SHIFTING, n_keep=keep, n_parallel=1)
    ids, count = words(3, 48), 260 if kind == "smollm2" else 400
    [reply] = driver.run(ids, tokens=count)
    assert len(reply.outs) == count
    assert reply.tokens == plain_shift(driver.engine, ids, count, keep if keep >= 0 else len(ids))
    assert forgotten(reply) == driver.engine.stats.forgotten_tokens >= count + len(ids) - CONTEXT
    first = next(number for number, out in enumerate(reply.outs) if out.forgotten)
    assert len(ids) + first == CONTEXT + 1  # not before it is full


def test_many_that_shift_side_by_side_write_what_each_writes_alone(load, tiny, same):
    prompts = [words(number, 20 + 30 * number) for number in range(4)]
    driver = load(tiny["llama"], **SHIFTING | {"n_ctx": 4 * CONTEXT, "kv_unified": False, "n_parallel": 4})
    assert driver.engine.facts.context_size == CONTEXT
    replies = driver.run(*prompts, tokens=700)
    alone = load(tiny["llama"], **SHIFTING, n_parallel=1)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert forgotten(reply) > 0
        same(reply, alone.run(prompt, tokens=700)[0])


def test_a_prefix_that_others_share_stays_right_when_one_of_them_shifts(load, tiny, same):
    """One pool of cells: two prompts begin alike, beyond what the first of them forgets."""
    prompt = words(1, 240)
    options = SHIFTING | {"n_ctx": 512, "n_parallel": 3}
    driver = load(tiny["llama"], **options)
    first = driver.start(prompt, tokens=400)
    for _ in range(20):
        driver.step()
    second = driver.start([*prompt, 77, 78], tokens=400)
    driver.finish()
    assert driver.replies[second].cached == 240
    assert forgotten(driver.replies[first]) and forgotten(driver.replies[second])
    alone = load(tiny["llama"], **options)
    before = [out for out in driver.replies[second].outs[:200]]
    [other] = alone.run([*prompt, 77, 78], tokens=len(before))
    assert [out.token for out in before] == other.tokens


def test_what_was_shifted_is_no_prefix_for_others(load, tiny, same):
    driver = load(tiny["llama"], **SHIFTING, n_parallel=1)
    [reply] = driver.run(words(1, 100), tokens=300)
    [slot] = driver.engine._scheduler.slots._slots
    assert slot.cached == 4
    seen = [*words(1, 100), *reply.tokens]
    [again] = driver.run(seen[:4] + seen[-150:], tokens=20)
    assert again.cached == 4
    [fresh] = load(tiny["llama"], **SHIFTING, n_parallel=1).run(seen[:4] + seen[-150:], tokens=20)
    same(again, fresh)


def test_it_goes_on_when_the_cache_is_short_for_several(load, tiny):
    driver = load(tiny["llama"], **SHIFTING | {"n_ctx": 300, "n_parallel": 3})
    replies = driver.run(*(words(number, 50) for number in range(3)), tokens=500)
    assert [len(reply.outs) for reply in replies] == [500] * 3
    assert driver.engine.stats.preemptions > 0
    assert all(reply.error is None for reply in replies)


def test_it_works_beside_guessed_tokens_and_quantized_values(load, tiny, same):
    options = SHIFTING | {"n_parallel": 1, "type_v": "q8_0"}
    guessing = load(tiny["llama"], **options | {"speculation": "lookup"})
    [reply] = guessing.run([11, 12, 13] * 40, tokens=600)
    assert guessing.engine.stats.guessed_tokens > 0
    [plain] = load(tiny["llama"], **options).run([11, 12, 13] * 40, tokens=600)
    assert forgotten(reply) == forgotten(plain) > 0
    same(reply, plain)


def finish_of(events):
    events = list(events)
    assert isinstance(events[-1], Finish)
    return "".join(event.text for event in events if isinstance(event, TextDelta)), events[-1]


def test_the_report_says_how_much_was_forgotten(load, tiny):
    engine: LlamaCppEngine = load(tiny["llama"], **SHIFTING, n_parallel=1).engine
    request = ChatRequest((Message("user", "Tell me a story."),), GREEDY, 500, ignore_eos=True)
    _, finish = finish_of(engine.chat(request))
    assert (finish.reason, finish.usage.completion_tokens) == ("length", 500)
    assert finish.context.shifted_tokens >= 500 + finish.usage.prompt_tokens - CONTEXT
    assert finish.context.context_size == CONTEXT
    _, short = finish_of(engine.chat(ChatRequest((Message("user", "Hi"),), GREEDY, 5)))
    assert short.context.shifted_tokens == 0


def test_without_a_limit_a_reply_ends_after_ten_contexts(load, tiny):
    engine = load(tiny["llama"], **SHIFTING, n_parallel=1).engine
    _, finish = finish_of(engine.complete(CompletionRequest("hello", GREEDY, ignore_eos=True)))
    assert (finish.reason, finish.usage.completion_tokens) == ("length", 10 * CONTEXT)


def test_it_is_off_when_nobody_asks_for_it(load, tiny):
    engine = load(tiny["llama"], n_ctx=CONTEXT, n_parallel=1).engine
    _, finish = finish_of(engine.complete(CompletionRequest("Once upon a time", GREEDY, ignore_eos=True)))
    assert finish.reason == "length"
    assert finish.usage.total_tokens == CONTEXT
    assert finish.context.shifted_tokens == 0


@pytest.mark.parametrize(("kind", "advice"), [("mamba", "$"), ("window", "or with swa_full")])
def test_a_cache_that_cannot_be_shifted_is_refused_by_name(load, tiny, kind, advice):
    with pytest.raises(UnsupportedError, match=f"can't be shifted; load it without context_shift.*{advice}"):
        load(tiny[kind], n_ctx=512, n_batch=32, context_shift=True)


def test_a_window_that_is_kept_whole_can_be_shifted(load, tiny):
    driver = load(tiny["window"], **SHIFTING, swa_full=True, n_parallel=1)
    [reply] = driver.run(words(1, 100), tokens=300)
    assert forgotten(reply) > 0


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_keys_that_cannot_be_moved_are_refused(load, tiny, kind):
    with pytest.raises(InvalidOption, match=f"{kind} can't be moved by context_shift; choose f16"):
        load(tiny["llama"], context_shift=True, type_k=kind)
