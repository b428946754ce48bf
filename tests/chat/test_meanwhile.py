"""Prompts are made ready while a step runs, where an engine tokenizes anywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from myllm_core.engine import TokenEngine
from myllm_core.runtime.hosts import TokenHost
from myllm_core.runtime.wire import pack_request
from myllm_core.types import ChatRequest, Message

PATIENCE = 20


@contextmanager
def running(engine: TokenEngine) -> Iterator[tuple[TokenHost, list[list[Any]]]]:
    """A host that runs the engine; all that it emits."""
    emitted: list[list[Any]] = []
    host = TokenHost(engine, emitted.extend, "test")
    thread = threading.Thread(target=host.run)
    thread.start()
    try:
        yield host, emitted
    finally:
        host.post(["close"])
        thread.join(PATIENCE)
    assert not thread.is_alive()


def ask(rid: int) -> list[Any]:
    return ["run", rid, pack_request(ChatRequest((Message("user", "hi"),)))]


def eventually(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_all_that_came_during_a_step_are_in_the_next_one(byte_engine: Any) -> None:
    stepping, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    class Slow(byte_engine):  # type: ignore[misc]
        tokenizes_anywhere = True

        def step(self) -> Any:
            sizes.append(len(self.running))
            stepping.set()
            assert go.wait(PATIENCE)
            return super().step()

    engine = Slow(b"a reply of some steps")
    engine.max_sequences = 8
    with running(engine) as (host, emitted):
        host.post(ask(1))
        assert stepping.wait(PATIENCE)
        for rid in (2, 3, 4):
            host.post(ask(rid))
        eventually(lambda: host._inbox.qsize() == 3)
        go.set()
        eventually(lambda: sum(item[1] == "f" for item in emitted) == 4)
    assert sizes[:2] == [1, 4]


def test_an_engine_is_closed_only_when_nobody_tokenizes(byte_engine: Any) -> None:
    tokenizing, go = threading.Event(), threading.Event()
    seen: list[str] = []

    class Slow(byte_engine):  # type: ignore[misc]
        tokenizes_anywhere = True

        def tokenize(self, text: str, special: bool) -> list[int]:
            tokenizing.set()
            assert go.wait(PATIENCE)
            seen.append("tokenized")
            return super().tokenize(text, special)

        def close(self) -> None:
            seen.append("closed")

    with running(Slow()) as (host, _):
        host.post(["tokenize", 1, "hello", False])
        host.post(ask(2))
        assert tokenizing.wait(PATIENCE)
        host.post(["close"])
        time.sleep(0.1)
        assert seen == []
        go.set()
    assert seen == ["tokenized", "closed"]
