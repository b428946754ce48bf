"""Giving way to other programs: what the numbers say, and that the real counters say something."""

from __future__ import annotations

import pytest
from myllm_llamacpp.threads import Crowding

from myllm_core.machine import free_cores


def windows(crowding: Crowding, count: int, share: float, pushed: int = 30, idle: float = 0.0) -> list[int]:
    """Tenths of a second in which each thread gets ``share`` of its core."""
    return [crowding.measured(0.1, share * 0.1 * crowding.count, pushed, idle * 0.1) for _ in range(count)]


def test_threads_that_are_pushed_off_their_cores_become_fewer():
    crowding = Crowding(2)
    assert windows(crowding, 2, share=0.6) == [1, 1]
    crowding = Crowding(16)
    assert windows(crowding, 1, share=0.5) == [8]
    assert windows(crowding, 1, share=0.85) == [7]


def test_threads_that_sleep_or_wait_for_a_gpu_stay():
    assert windows(Crowding(8), 20, share=0.1, pushed=1) == [8] * 20


def test_a_quiet_machine_keeps_all_threads():
    assert windows(Crowding(2), 50, share=0.99, pushed=9, idle=0.01) == [2] * 50


def test_an_idle_core_is_taken_back_after_a_pause():
    crowding = Crowding(2)
    windows(crowding, 1, share=0.6)
    counts = windows(crowding, 40, share=1.0, pushed=0, idle=1.0)
    assert counts[0] == 1
    assert counts[-1] == 2


def test_no_core_is_taken_back_while_none_is_idle():
    crowding = Crowding(2)
    windows(crowding, 1, share=0.6)
    assert windows(crowding, 200, share=1.0, pushed=0, idle=0.1) == [1] * 200


def test_a_pause_grows_when_going_back_proves_wrong():
    crowding, pauses = Crowding(2), []
    for _ in range(9):
        windows(crowding, 1, share=0.6)
        waited = 0
        while crowding.count == 1:
            windows(crowding, 1, share=1.0, pushed=0, idle=1.0)
            waited += 1
        pauses.append(waited)
    assert pauses == sorted(pauses)
    assert pauses[0] < 30
    assert 590 <= pauses[-1] <= 610  # a minute at most


@pytest.mark.parametrize("fixed", [0, 1])
def test_the_engine_runs_with_automatic_and_with_fixed_threads(load, tiny, fixed):
    driver = load(tiny["llama"], n_threads=fixed)
    threads = driver.engine._context.threads
    driver.run([10, 11, 12], tokens=50)
    assert 1 <= threads.crowding.count <= (fixed or free_cores())
