"""Sequences that outlast a restart, and files that aren't what they should be."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from myllm_llamacpp.disk import Disk
from myllm_llamacpp.states import State


def words(first, count):
    """A prompt for the tiny models; another ``first``, another prompt from the begin on."""
    return [10 + (37 * first + 5 * step) % 250 for step in range(count)]


@pytest.fixture
def start(load, tmp_path, tiny):
    """Start an engine with a disk cache, as a server does that is started again."""

    def make(kind: str = "llama", sha256: str = "ab" * 32, **options: Any):
        return load(tiny[kind], sha256=sha256, **{"n_ctx": 1024, "cache_dir": str(tmp_path / "kv")} | options)

    return make


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kv").iterdir()) if (tmp_path / "kv").exists() else []


def wait_idle(driver):
    pieces = 0
    while driver.engine.idle():
        pieces += 1
    return pieces


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("kind", ["llama", "window", "mamba"])
def test_a_conversation_goes_on_after_a_restart(start, same, kind, unified):
    options = {"kv_unified": unified, "n_parallel": 2}
    driver = start(kind, **options)
    [first] = driver.run(words(1, 400), tokens=10)
    driver.engine.close()
    goes_on = words(1, 400) + first.tokens + [20, 21, 22]
    [second] = start(kind, **options).run(goes_on, tokens=10)
    assert second.cached == 409
    [alone] = start(kind, cache_disk=0, **options).run(goes_on, tokens=10)
    assert alone.cached == 0
    same(second, alone)


def test_what_was_saved_while_idle_outlasts_a_crash(start, tmp_path):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    assert wait_idle(driver) >= 2
    assert [path.suffix for path in files(tmp_path)] == [".kv"]
    assert start().run(words(1, 400), tokens=2)[0].cached == 399


def test_saving_that_is_interrupted_by_requests_goes_on_later(start, tmp_path):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    assert driver.engine.idle()
    driver.run(words(1, 400) + [7], words(2, 50), tokens=5)
    assert wait_idle(driver)
    assert start().run(words(1, 400), tokens=2)[0].cached == 399


def test_nothing_is_saved_that_is_short_or_saved_already(start, tmp_path):
    driver = start()
    driver.run(words(1, 200), tokens=2)
    assert wait_idle(driver) == 0
    driver.run(words(2, 500), tokens=2)
    assert wait_idle(driver) > 0
    driver.run(words(2, 500), tokens=20)
    assert wait_idle(driver) == 0
    driver.engine.close()
    assert len(files(tmp_path)) == 1
    again = start()
    again.run(words(2, 500), tokens=2)
    again.engine.close()
    assert len(files(tmp_path)) == 1


def test_a_conversation_that_grew_takes_the_place_of_its_beginning(start, tmp_path):
    driver = start()
    for count in (150, 300, 470):
        driver.run(words(1, count), tokens=2)
        wait_idle(driver)
        assert len(files(tmp_path)) <= 1
    driver.engine.close()
    assert start().run(words(1, 490), tokens=2)[0].cached == 470
    assert len(files(tmp_path)) == 1


def test_other_weights_and_other_cache_types_have_other_files(start, tmp_path):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    driver.engine.close()
    assert start(sha256="cd" * 32).run(words(1, 400), tokens=2)[0].cached == 0
    assert start(type_k="f32").run(words(1, 400), tokens=2)[0].cached == 0
    assert start(kv_unified=False, n_parallel=2).run(words(1, 400), tokens=2)[0].cached == 0
    assert start(n_ctx=2048, n_batch=64).run(words(1, 400), tokens=2)[0].cached == 399


def test_weights_of_unknown_content_are_never_saved(start, tmp_path):
    driver = start(sha256="")
    driver.run(words(1, 400), tokens=2)
    assert wait_idle(driver) == 0
    driver.engine.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize("place", [0, 20, 60, 80, 90, 1200, 5000, -1])
def test_a_damaged_file_is_deleted_and_the_prompt_is_read_anew(start, tmp_path, same, place):
    driver = start()
    [first] = driver.run(words(1, 400), tokens=10)
    driver.engine.close()
    [path] = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again = start()
    [second] = again.run(words(1, 400), tokens=10)
    assert second.cached == 0
    same(second, first)
    if place != 90:  # in the first token: no prompt begins like it
        assert files(tmp_path) == []


@pytest.mark.parametrize("size", [0, 50, 90, 5000])
def test_a_file_that_is_cut_short_is_deleted(start, tmp_path, size):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    driver.engine.close()
    [path] = files(tmp_path)
    os.truncate(path, size)
    assert start().run(words(1, 400), tokens=2)[0].cached == 0
    assert files(tmp_path) == []


def test_a_file_that_is_gone_when_it_is_wanted_costs_nothing(start, tmp_path, caplog):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    driver.engine.close()
    again = start()
    [path] = files(tmp_path)
    path.unlink()
    assert again.run(words(1, 400), tokens=2)[0].cached == 0
    assert caplog.records == []


def test_files_are_for_us_alone(start, tmp_path):
    driver = start()
    driver.run(words(1, 400), tokens=2)
    driver.engine.close()
    [path] = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_limit_holds_for_all_models_together_and_the_oldest_go(start, tmp_path):
    limit = 2**20
    for number in range(8):
        driver = start(sha256=f"{number % 2:064x}", cache_disk=1)
        driver.run(words(number, 480), tokens=2)
        driver.engine.close()
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    assert len(files(tmp_path)) >= 2
    assert start(sha256=f"{1:064x}").run(words(7, 480), tokens=2)[0].cached == 479
    assert start(sha256=f"{0:064x}").run(words(0, 480), tokens=2)[0].cached == 0


def test_an_hour_of_new_conversations_writes_no_more_than_the_limit(start, tmp_path):
    driver = start(cache_disk=1)
    written = 0
    for number in range(12):
        driver.run(words(number, 480), tokens=2)
        written += wait_idle(driver) > 0
    assert 3 <= written <= 5  # each is a quarter of a megabyte


def test_a_folder_that_cannot_be_written_ends_saving_and_nothing_else(start, tmp_path, caplog):
    (tmp_path / "kv").write_text("a file")
    driver = start()
    driver.run(words(1, 400), tokens=2)
    wait_idle(driver)
    assert "can't be saved" in caplog.text
    assert driver.run(words(2, 400), tokens=2)[0].error is None
    caplog.clear()
    assert wait_idle(driver) == 0
    driver.engine.close()
    assert caplog.records == []


def test_what_a_crash_left_half_written_is_cleaned_up(tmp_path):
    old, new = tmp_path / ".x.kv.1234", tmp_path / ".y.kv.1234"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    Disk(tmp_path, bytes(32), 2**20)
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    disk = Disk(tmp_path, bytes(32), 2**30)
    state = State(np.arange(300, dtype=np.int32), 0, np.ones(2**23, np.uint8), time.time())
    writing = disk.write(state, [])
    next(writing)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert list(writing) == [None]
    assert list(tmp_path.iterdir()) == []
    assert list(disk) == []
