"""An engine does what it put off when nothing runs, and requests come first."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from myllm_core.runtime import hosts
from myllm_core.runtime.hosts import TokenHost


@pytest.fixture
def serve(byte_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a host over an engine that has so many pieces of work put off; the host, and the times of the pieces."""
    monkeypatch.setattr(hosts, "_QUIET", 0.05)
    running: list[tuple[TokenHost, threading.Thread]] = []

    def make(pieces: int, fails: bool = False) -> tuple[TokenHost, list[float], list[Any]]:
        done: list[float] = []
        events: list[Any] = []

        class Busybody(byte_engine):  # type: ignore[misc]
            def idle(self) -> bool:
                done.append(time.monotonic())
                if fails:
                    raise RuntimeError("no")
                time.sleep(0.01)
                return len(done) < pieces

        host = TokenHost(Busybody(), events.extend, "test")
        thread = threading.Thread(target=host.run)
        thread.start()
        running.append((host, thread))
        return host, done, events

    yield make
    for host, thread in running:
        host.post(["close"])
        thread.join(10)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_work_that_was_put_off_is_done_until_none_is_left(serve: Any) -> None:
    _, done, _ = serve(5)
    wait_for(lambda: len(done) == 5)
    time.sleep(0.2)
    assert len(done) == 5


def test_a_command_waits_for_one_piece_only_and_work_goes_on_after_it(serve: Any) -> None:
    host, done, events = serve(1000)
    wait_for(lambda: len(done) > 3)
    began = time.monotonic()
    host.post(["ping", 7])
    wait_for(lambda: events)
    assert time.monotonic() - began < 1
    assert events == [[7, "e", {}]]
    before = len(done)
    wait_for(lambda: len(done) > before)


def test_commands_that_keep_coming_put_the_work_off(serve: Any) -> None:
    host, done, events = serve(1000)
    for number in range(20):
        host.post(["ping", number])
        time.sleep(0.01)
    wait_for(lambda: len(events) == 20)
    assert len(done) < 20


def test_an_engine_that_fails_while_it_is_idle_goes_on_serving(serve: Any) -> None:
    host, done, events = serve(1, fails=True)
    wait_for(lambda: done)
    host.post(["ping", 1])
    wait_for(lambda: events)
