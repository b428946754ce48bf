"""A hundred random programs of arrivals and cancels: each reply is the one that its request gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from myllm_llamacpp.engine import LlamaCppEngine

from myllm_core.chat.pipeline import Pipeline, Prepared
from myllm_core.types import CompletionRequest, ContextReport, Finish, Sampling, TextDelta

from .conftest import SMALL, forget_all, installed

SIZE = 256
"""Tokens of the cache: a few of the longer requests fill it."""
TIGHT = SMALL | {"n_ctx": SIZE, "n_batch": 32, "n_parallel": 5}
APART = {"kv_unified": False, "n_ctx": 5 * SIZE}
# Whose cells lie where in a shared cache changes the order of sums, and half precision makes much of that.
PRECISE = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}
FULL = ["preemptions", "evictions", "cached_tokens"]
KINDS: dict[str, tuple[str, int, dict[str, Any], list[str]]] = {
    "plain": ("llama", 40, PRECISE, FULL),
    "guessing": ("llama", 20, PRECISE | {"speculation": "lookup"}, [*FULL, "right_guesses"]),
    "forgetful": ("llama", 10, PRECISE | {"cache_ram": 0}, FULL),
    "apart": ("llama", 10, PRECISE | APART, ["cached_tokens"]),
    "window": ("window", 10, PRECISE, FULL),
    "recurrent": ("mamba", 10, APART, ["cached_tokens"]),
}
"""Model, how many programs, options, and what must have happened in them, by what is special about them."""


@dataclass
class Asked:
    """A request of a program: when it comes (in steps), and when it is cancelled, if it is."""

    at: int
    prompt: list[int]
    request: CompletionRequest
    until: int | None
    text: str = ""
    finish: Finish | None = None


@dataclass
class Program:
    """Requests that share beginnings, come in bursts, and give up."""

    random: Random
    asked: list[Asked] = field(default_factory=list)

    def fill(self) -> list[Asked]:
        """Think of all requests."""
        at = 0
        for _ in range(self.random.randint(4, 14)):
            at += self.random.choice([0, 0, 0, 1, 3, 12])
            until = at + self.random.randint(0, 25) if self.random.random() < 0.3 else None
            limit = self.random.choice([1, 1, 5, 20, 140])
            request = CompletionRequest("", self.sampling(), limit)
            self.asked.append(Asked(at, self.prompt(), request, until))
        return self.asked

    def sampling(self) -> Sampling:
        seed = self.random.randrange(1000)
        return self.random.choice(
            [Sampling(temperature=0.0), Sampling(seed=seed), Sampling(seed=seed, top_k=5, repeat_penalty=1.3)]
        )

    def prompt(self) -> list[int]:
        """Short or long, some that go round in circles, many that begin as another does or go on behind it."""
        length = self.random.choice([1, 5, 40, 120])
        fresh = [self.random.randrange(3, 280) for _ in range(self.random.randint(1, length))]
        if self.random.random() < 0.2:
            return fresh[:9] * 6
        if self.asked and self.random.random() < 0.5:
            other = self.random.choice(self.asked).prompt
            shared = self.random.choice([len(other), self.random.randint(1, len(other))])
            return (other[:shared] + fresh)[:170]
        return fresh


def play(engine: LlamaCppEngine, asked: list[Asked]) -> None:
    """Run a program to its end."""
    pipeline, step = Pipeline(engine), 0
    by_id = dict(enumerate(asked))

    def note(rid: int, event: object) -> None:
        if isinstance(event, TextDelta):
            by_id[rid].text += event.text
        elif isinstance(event, Finish):
            by_id[rid].finish = event

    while pipeline.busy or any(one.at >= step for one in asked):
        for rid, one in by_id.items():
            if one.at == step:
                pipeline.start(rid, one.request, Prepared(one.prompt, ContextReport(SIZE), ()))
            if one.until == step:
                for event in pipeline.cancel(rid):
                    note(rid, event)
        for rid, event in pipeline.step():
            note(rid, event)
        step += 1
        assert step < 10_000, "it doesn't come to an end"


@pytest.fixture(scope="module")
def engines(tiny: dict[str, Path]) -> Iterator[Callable[..., LlamaCppEngine]]:
    """Engines by model and options, made once."""
    made: dict[str, LlamaCppEngine] = {}

    def get(kind: str, **options: object) -> LlamaCppEngine:
        key = f"{kind} {options}"
        if key not in made:
            given = {option.name: option.default for option in LlamaCppEngine.load_options} | TIGHT | options
            made[key] = LlamaCppEngine.load(installed(tiny[kind]), given, lambda fraction: None)
        return made[key]

    yield get
    for engine in made.values():
        engine.close()


def assert_all_free(engine: LlamaCppEngine) -> None:
    """Nothing runs, the slots know what they hold, and when that is forgotten no cell is taken."""
    slots, context = engine._scheduler.slots._slots, engine._context
    assert not any(slot.busy for slot in slots)
    assert all(context.last(slot.id) + 1 == slot.cached for slot in slots)
    forget_all(engine)
    assert all(context.last(slot.id) == -1 for slot in slots)


@pytest.mark.parametrize("special", KINDS)
def test_each_reply_is_the_one_that_its_request_gets_alone(engines, special: str) -> None:
    kind, programs, options, happens = KINDS[special]
    engine = engines(kind, **options)
    alone = engines(kind, **options | {"n_ctx": SIZE, "n_parallel": 1, "speculation": "off"})
    for number in range(programs):
        asked = Program(Random(f"{special} {number}")).fill()
        play(engine, asked)
        assert_all_free(engine)
        for one in asked:
            single = Asked(0, one.prompt, one.request, None)
            play(alone, [single])
            forget_all(alone)
            assert_alike(one, single, f"{special}, program {number}")
    assert all(engine.stats.as_dict()[name] > 0 for name in happens), engine.stats


def assert_alike(one: Asked, single: Asked, which: str) -> None:
    """The same, or the begin of it when it was cancelled."""
    assert one.finish is not None and one.finish.error is None, which
    assert single.finish is not None and single.finish.error is None, which
    if one.finish.reason == "cancelled":
        assert single.text.startswith(one.text.rstrip("\ufffd")), which  # half a character
        return
    assert (one.text, one.finish.reason) == (single.text, single.finish.reason), which
    assert one.finish.usage.completion_tokens == single.finish.usage.completion_tokens, which
