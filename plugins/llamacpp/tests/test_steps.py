"""How a step is put together: chunk sizes, fair shares, and what happens when llama.cpp fails."""

from __future__ import annotations

import logging

import pytest
from myllm_llamacpp.pace import Pace

from myllm_core.errors import EngineError
from myllm_core.types import Sampling


def test_a_chunk_beside_streams_stays_within_three_plain_steps():
    pace = Pace(512)
    for _ in range(20):
        pace.measured(4, 0, 0.025)
        pace.measured(0, 100, 0.4)
    chunk = pace.chunk(4)
    assert 0.025 + chunk * 0.004 == pytest.approx(3 * 0.025, rel=0.1)
    assert pace.chunk(0) == pytest.approx(125, rel=0.1)  # half a second


def test_where_more_wait_for_their_first_token_than_for_their_next_a_step_may_take_longer():
    pace = Pace(512)
    for _ in range(20):
        pace.measured(4, 0, 0.025)
        pace.measured(0, 100, 0.4)
    assert pace.chunk(4, 4) == pace.chunk(4)
    assert pace.chunk(4, 12) == pytest.approx(3 * pace.chunk(4), abs=3)
    assert pace.chunk(1, 100) <= pace.chunk(0)  # nobody waits for half a second


def test_a_quick_machine_takes_the_whole_batch_and_a_slow_one_gets_on():
    quick, slow = Pace(512), Pace(512)
    for _ in range(20):
        quick.measured(1, 0, 0.0005)
        quick.measured(0, 512, 0.01)
        slow.measured(1, 0, 3.0)
        slow.measured(0, 64, 200.0)
    assert quick.chunk(0) == quick.chunk(1) == 512
    assert slow.chunk(0) == slow.chunk(1) == 8


def test_streams_that_were_never_measured_alone_cost_a_prompt_token_each():
    pace = Pace(512)
    pace.measured(0, 64, 0.64)
    assert pace.chunk(8) == pytest.approx(16, abs=1)


def test_a_short_prompt_does_not_wait_for_a_long_one(load, tiny):
    driver = load(tiny["llama"], n_batch=64)
    long = driver.start([10 + step % 200 for step in range(400)], tokens=1)
    short = driver.start([11, 12, 13, 14], tokens=1)
    driver.step()
    assert driver.replies[short].outs
    assert not driver.replies[long].outs
    driver.finish()
    assert driver.replies[long].outs


def test_a_failed_batch_ends_its_sequences_and_nothing_else(load, tiny, monkeypatch):
    driver = load(tiny["llama"])
    one, two = driver.start([11, 12, 13]), driver.start([14, 15])
    driver.step()
    context = driver.engine._context
    with monkeypatch.context() as patch:
        patch.setattr(context, "decode", lambda: -3)
        driver.step()
    for number in (one, two):
        assert isinstance(driver.replies[number].error, EngineError)
        assert "code -3" in str(driver.replies[number].error)
    assert all(context.last(slot) == -1 for slot in range(context.sequences))
    [reply] = driver.run([11, 12, 13])
    assert reply.error is None


def test_statistics_add_up(load, tiny):
    driver = load(tiny["llama"])
    driver.run([10, 11, 12, 13], [10, 11, 12, 14, 15], tokens=5)
    stats = driver.engine.stats
    assert stats.generated_tokens == 10
    assert stats.prompt_tokens + stats.cached_tokens == 9
    assert 0 < stats.decode_seconds < stats.step_seconds
    assert stats.as_dict()["overhead"] == stats.overhead == 1 - stats.decode_seconds / stats.step_seconds


def test_the_step_of_the_real_model_is_spent_in_llama_cpp(load):
    driver = load(n_ctx=1024)
    for count in (1, 8):
        stats = driver.engine.stats
        before = stats.step_seconds, stats.decode_seconds
        driver.run(*[f"{number} green bottles" for number in range(count)], tokens=20, logprobs=None,
                   sampling=Sampling(seed=1))  # fmt: skip
        step, decode = stats.step_seconds - before[0], stats.decode_seconds - before[1]
        assert (step - decode) / step < 0.15  # under 0.03 on a quiet machine


def test_llama_cpp_logs_to_python_and_never_to_standard_output(load, tiny, capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="myllm_llamacpp"):
        load(tiny["llama"])
    assert any("llama" in record.message for record in caplog.records)
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    caplog.clear()
    load(tiny["llama"]).run([11, 12])
    assert caplog.records == []
    assert capfd.readouterr().out == ""
