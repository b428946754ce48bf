"""Embeddings beside replies: neither holds the other up, and both are what they are alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from myllm_llamacpp.context import Context
from myllm_llamacpp.pace import Pace

from myllm_core.runtime.hosts import TokenHost
from myllm_core.runtime.wire import pack_request
from myllm_core.types import CompletionRequest, Sampling

LONG = "hello cats and dogs " * 20
TEXTS = [LONG, "short", "another short one", LONG[:900], *(f"number {number}" for number in range(40))]


class Spied:
    """What went through a host: each forward pass as (kind, rows), and what was answered."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[str, int]] = []
        self.answers: dict[int, list[Any]] = {}
        self.writes = engine._scheduler.context
        self.on_event: Callable[[list[Any]], None] = lambda event: None
        decode = Context.decode

        def spy(context: Context) -> int:
            self.passes.append(("reply" if context is self.writes else "embed", len(context.batch)))
            return decode(context)

        monkeypatch.setattr(Context, "decode", spy)
        self.host = TokenHost(engine, self._take, "")
        monkeypatch.setattr(engine, "close", lambda: None)  # the fixture does

    def _take(self, batch: list[list[Any]]) -> None:
        for event in batch:
            self.answers.setdefault(event[0], []).append(event[1:])
            self.on_event(event)

    def text(self, number: int) -> str:
        return "".join(event[1] for event in self.answers[number] if event[0] == "t")

    def finished(self, number: int) -> bool:
        return any(event[0] in "fex" for event in self.answers.get(number, []))


STEP = 16
REPLY = pack_request(CompletionRequest("hello", Sampling(temperature=0.0), 200, ignore_eos=True))


@pytest.fixture
def engine(load, tiny, monkeypatch):
    """An engine that reads 16 tokens beside a reply, as if it were slow."""
    monkeypatch.setattr(Pace, "chunk", lambda self, streams, prompts=1: STEP if streams else 512)
    return load(tiny["llama"], speculation="off").engine


@pytest.fixture
def alone(load, tiny):
    """The text of the reply, and the vectors of the first texts."""
    engine = load(tiny["llama"], speculation="off").engine
    request = CompletionRequest("hello", Sampling(temperature=0.0), 200, ignore_eos=True)
    text = "".join(getattr(event, "text", "") for event in engine.complete(request))
    return text, np.array([engine.embed([text]).vectors[0] for text in TEXTS[:4]])


def test_a_big_job_of_embeddings_lets_every_reply_go_on_between_its_steps(engine, alone, monkeypatch):
    spied = Spied(engine, monkeypatch)

    def when_it_writes(event: list[Any]) -> None:
        if event[:2] == [1, "t"] and 2 not in spied.answers:
            spied.answers[2] = []
            spied.host.post(["embed", 2, TEXTS])
        if spied.finished(1) and spied.finished(2):
            spied.host.post(["close"])

    spied.on_event = when_it_writes
    spied.host.post(["run", 1, REPLY])
    spied.host.run()
    last = max(number for number, (kind, _) in enumerate(spied.passes) if kind == "reply")
    first = min(number for number, (kind, _) in enumerate(spied.passes) if kind == "embed")
    beside = spied.passes[first : last + 1]
    assert sum(kind == "embed" for kind, _ in beside) > 5  # of more than 30, as time allowed
    assert all(two[0] == "reply" for one, two in zip(beside, beside[1:], strict=False) if one[0] == "embed")
    assert max(rows for kind, rows in beside if kind == "embed") == STEP
    text, vectors = alone
    assert spied.text(1) == text
    made = np.array(spied.answers[2][-1][1]["vectors"])
    assert len(made) == len(TEXTS)
    assert np.abs(made[:4] - vectors).max() < 5e-3


def test_jobs_take_turns_and_one_that_is_cancelled_amid_a_text_leaves_no_trace(engine, alone, monkeypatch):
    spied = Spied(engine, monkeypatch)
    seen = threading.Event()

    def stop(event: list[Any]) -> None:
        if event[:2] == [1, "t"] and not seen.is_set() and any(kind == "embed" for kind, _ in spied.passes):
            seen.set()
            spied.host.post(["cancel", 2])
        if spied.finished(1) and spied.finished(3) and spied.finished(4):
            spied.host.post(["close"])

    spied.on_event = stop
    spied.host.post(["run", 1, REPLY])
    spied.host.post(["embed", 2, [LONG] * 50])
    spied.host.post(["embed", 3, [TEXTS[0]]])
    spied.host.post(["embed", 4, TEXTS[1:4]])
    spied.host.run()
    assert not spied.finished(2)
    text, vectors = alone
    assert spied.text(1) == text
    assert np.abs(np.array(spied.answers[3][-1][1]["vectors"]) - vectors[:1]).max() < 5e-3
    assert np.abs(np.array(spied.answers[4][-1][1]["vectors"]) - vectors[1:]).max() < 5e-3


def test_alone_a_batch_is_full(load, tiny, monkeypatch):
    engine = load(tiny["llama"], n_batch=64).engine
    spied = Spied(engine, monkeypatch)
    engine.embed([LONG])
    rows = [rows for _, rows in spied.passes]
    assert len(rows) > 3
    assert set(rows[:-1]) == {64}
