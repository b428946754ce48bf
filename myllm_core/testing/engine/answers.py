"""What every engine's replies are like, whether it takes messages or tokens."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

import ctypes
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import MyllmError
from myllm_core.testing.engine.given import (
    EngineCase,
    EngineFixtures,
    Loaded,
    alike,
    ask,
    cancel_midway,
    comparable,
    needs,
    question,
)
from myllm_core.types import ChatRequest, Message, TextDelta

_CYCLES = 3
_UNNOTICED = 16 * 2**20  # bytes that an allocator may keep


class AnswerTests(EngineFixtures):
    """Replies from the first event to the last, and closing."""

    def test_loading_tells_fractions_that_rise(self, loaded: Loaded) -> None:
        told = loaded.progress
        assert all(isinstance(fraction, int | float) and 0 <= fraction <= 1 for fraction in told), told
        assert told == sorted(told)

    def test_a_reply_ends_with_one_finish(self, talker: Engine, case: EngineCase) -> None:
        reply = ask(talker, question(), case.patience)
        finish = reply.ended_well()
        assert reply.written, "the reply is empty"
        for count in (finish.usage.prompt_tokens, finish.usage.completion_tokens, finish.usage.cached_tokens):
            assert type(count) is int and count >= 0

    def test_max_tokens_ends_a_reply(self, talker: Engine, case: EngineCase) -> None:
        reply = ask(talker, question(max_tokens=1), case.patience)
        assert reply.ended_well().usage.completion_tokens <= 1
        assert len([event for event in reply.events if isinstance(event, TextDelta)]) <= 1

    def test_a_long_conversation_is_answered(self, talker: Engine, case: EngineCase) -> None:
        messages = (
            Message("system", "You are brief."),
            Message("user", "What is two and two?"),
            Message("assistant", "Four."),
            Message("user", "And three? 漢字 👋🏽"),
        )
        ask(talker, replace(question(), messages=messages), case.patience).ended_well()

    @pytest.mark.parametrize("text", ["", "\x00", "half a pair: \ud83d", "<|im_end|></s>", "\u200b\u202e"])
    def test_odd_text_is_answered_or_refused(self, talker: Engine, case: EngineCase, text: str) -> None:
        with suppress(MyllmError):
            reply = ask(talker, question(text), case.patience)
            if reply.finish.reason != "error":
                reply.ended_well()
        ask(talker, question(), case.patience).ended_well()

    def test_a_cancelled_reply_leaves_it_usable(self, talker: Engine, case: EngineCase) -> None:
        before = ask(talker, comparable(talker), case.patience)
        for _ in range(getattr(talker, "max_sequences", talker.max_concurrency) % 32 + 2):
            cancel_midway(talker, question("Count to one hundred.", max_tokens=64), case.patience)
        after = ask(talker, comparable(talker), case.patience)
        after.ended_well()
        if "temperature" in talker.sampling:
            assert alike(after, before), "a reply differs after another one was cancelled"

    def test_one_conversation_leaves_no_trace_in_the_next(self, talker: Engine, case: EngineCase) -> None:
        needs(talker, "temperature")
        before = ask(talker, comparable(talker), case.patience)
        ask(talker, question("Name three animals that live in the sea."), case.patience).ended_well()
        assert alike(before, ask(talker, comparable(talker), case.patience))

    def test_as_many_chats_run_side_by_side_as_it_says(self, talker: Engine, case: EngineCase) -> None:
        if isinstance(talker, TokenEngine):
            pytest.skip("a TokenEngine runs sequences side by side, not chats")
        if talker.max_concurrency < 2:
            pytest.skip("the engine takes one chat at a time")
        asked = [question(f"Say the word number{n}.") for n in range(min(talker.max_concurrency, 8))]
        alone = [ask(talker, request, case.patience).text for request in asked]
        same = alone == [ask(talker, request, case.patience).text for request in asked]

        def chat(request: ChatRequest) -> str:
            reply = ask(talker, request, case.patience)
            reply.ended_well()
            return reply.text

        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(chat, asked))
        assert together == alone or not same, "chats that run side by side get into each other's way"

    def test_nothing_is_printed(self, case: EngineCase, capfd: pytest.CaptureFixture[str]) -> None:
        flush_native()
        capfd.readouterr()
        engine = case.load()
        try:
            if "chat" in engine.facts.capabilities:
                ask(engine, question(), case.patience)
            if "embed" in engine.facts.capabilities:
                engine.embed(["text"])
        finally:
            engine.close()
        flush_native()
        assert capfd.readouterr().out == "", "standard output belongs to the answer; log, or print to standard error"

    def test_close_may_be_called_twice(self, case: EngineCase) -> None:
        engine = case.load()
        engine.close()
        engine.close()

    def test_close_gives_memory_back(self, case: EngineCase) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        self._load_and_close(case)
        cost = self.peak - before
        first = process.memory_info().rss
        for _ in range(_CYCLES):
            self._load_and_close(case)
        grown = process.memory_info().rss - first
        assert grown < max(cost, 0) * _CYCLES / 2 + _UNNOTICED, (
            f"loading and closing {_CYCLES} times left {grown / 2**20:.0f} MiB behind; "
            f"loaded it takes {cost / 2**20:.0f} MiB"
        )

    def _load_and_close(self, case: EngineCase) -> None:
        engine = case.load()
        try:
            if "chat" in engine.facts.capabilities:
                ask(engine, question(max_tokens=2), case.patience)
            self.peak = psutil.Process().memory_info().rss
        finally:
            engine.close()
        del engine
        gc.collect()


def flush_native() -> None:
    """Write out what C code has printed and still holds."""
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
