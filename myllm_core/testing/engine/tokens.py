"""What the core relies on when it runs a TokenEngine: its tokenizer, its steps, its limits."""

# ruff: noqa: D102 - a test's name says what it tests

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from myllm_core.engine import Engine, Sequence, TokenEngine, TokenOut
from myllm_core.errors import ContextLengthError, MyllmError
from myllm_core.testing.engine.given import (
    GREEDY,
    EngineCase,
    EngineFixtures,
    Pipe,
    Reply,
    ask,
    ask_together,
    question,
)
from myllm_core.testing.engine.wrapped import Wrapped
from myllm_core.types import CompletionRequest

_TEXTS = [
    "Hello",
    "Hello, world! 1234",
    "  two  spaces\n\nand lines\n",
    "Grüße aus Köln",
    "👋🏽 👩‍👩‍👧 漢字 ไทย",
    'def f(x):\n    return {"a": [1, 2]}',
]
_FILL = 1200
"""Tokens of the largest context that a test fills."""
_MOST_TOGETHER = 8
_ROUNDS = 20


class TokenTests(EngineFixtures):
    """Tokenizer, steps, context."""

    def test_the_facts_are_sane(self, engine: Engine) -> None:
        facts = engine.facts
        assert type(facts.context_size) is int and facts.context_size > 0
        assert facts.trained_context >= 0
        if not isinstance(engine, TokenEngine):
            return
        assert facts.vocab_size > 0
        assert facts.eos_tokens or "chat" not in facts.capabilities, "without eos_tokens no reply ends"
        known = range(facts.vocab_size)
        assert all(token in known for token in facts.eos_tokens)
        assert facts.bos_token is None or facts.bos_token in known
        assert engine.max_sequences >= 1
        assert facts == engine.facts, "facts change"

    @pytest.mark.parametrize("text", _TEXTS, ids=range(len(_TEXTS)))
    def test_the_tokens_of_a_text_stand_for_its_bytes(self, tokens: TokenEngine, text: str) -> None:
        ids = tokens.tokenize(text, False)
        assert all(type(token) is int and 0 <= token < tokens.facts.vocab_size for token in ids), ids
        said = b"".join(map(tokens.piece, ids)).decode()
        assert said.removeprefix(" ") == text.removeprefix(" "), "tokenize and piece don't fit together"

    def test_no_text_has_no_tokens(self, tokens: TokenEngine) -> None:
        assert tokens.tokenize("", False) == tokens.tokenize("", True) == [], "the core adds BOS where it belongs"

    def test_half_a_pair_is_tokenized_or_refused(self, tokens: TokenEngine) -> None:
        try:
            ids = tokens.tokenize("a\ud83db", False)
        except MyllmError:
            return
        assert all(0 <= token < tokens.facts.vocab_size for token in ids)

    def test_control_tokens_come_from_special_text_only(self, tokens: TokenEngine) -> None:
        texts = [text for text in tokens.facts.special_tokens if text][:50]
        if not texts:
            pytest.skip("the model has no control tokens")
        for text in texts:
            special = tokens.tokenize(text, True)
            assert len(special) == 1, f"{text!r} is {len(special)} tokens, not its control token"
            assert special[0] not in tokens.tokenize(text, False), f"a user who types {text!r} gets the control token"
            assert tokens.piece(special[0]) == b"", f"the control token {text!r} would be shown to people"

    def test_every_token_has_bytes(self, tokens: TokenEngine) -> None:
        size = tokens.facts.vocab_size
        for token in {*range(0, size, max(1, size // 4000)), size - 1}:
            assert type(tokens.piece(token)) is bytes

    def test_texts_are_tokenized_while_a_step_runs(self, tokens: TokenEngine, case: EngineCase) -> None:
        if not tokens.tokenizes_anywhere:
            pytest.skip("the engine tokenizes on its own thread only")
        known = [tokens.tokenize(text, False) for text in _TEXTS]

        def tokenize() -> bool:
            return all([tokens.tokenize(text, False) for text in _TEXTS] == known for _ in range(_ROUNDS))

        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(tokenize)
            ask(tokens, question(max_tokens=4), case.patience).ended_well()
            here = tokenize()  # as a grammar does
            assert there.result(case.patience) and here, "a text has other tokens while another thread tokenizes"

    def test_characters_split_over_tokens_come_out_whole(self, tokens: TokenEngine, case: EngineCase) -> None:
        text = "Grüße 👋🏽 漢字 👩‍👩‍👧!"
        reply = self._scripted(tokens, text, case)
        assert reply.text.removeprefix(" ") == text
        assert "\ufffd" not in reply.text

    def test_a_stop_string_split_over_tokens_ends_a_reply(self, tokens: TokenEngine, case: EngineCase) -> None:
        reply = self._scripted(tokens, "Stop before the 漢字STOP here, not after", case, stop=("字STOP h",))
        assert reply.text.removeprefix(" ") == "Stop before the 漢"
        assert (reply.finish.reason, reply.finish.stop) == ("stop", "字STOP h")

    def _scripted(self, tokens: TokenEngine, text: str, case: EngineCase, stop: tuple[str, ...] = ()) -> Reply:
        script = tokens.tokenize(text, False)
        reply = ask(
            Scripted(tokens, script), question(max_tokens=len(script), stop=stop, ignore_eos=True), case.patience
        )
        reply.ended_well()
        return reply

    def test_the_context_can_be_filled_and_one_token_more_is_refused(
        self, tokens: TokenEngine, case: EngineCase
    ) -> None:
        size = _fillable(tokens)
        finish = ask(tokens, _completion(tokens, size - 1, max_tokens=5), case.patience).ended_well()
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (size - 1, 1)
        with pytest.raises(ContextLengthError) as error:
            ask(tokens, _completion(tokens, size), case.patience)
        assert error.value.data == {"prompt_tokens": size, "context_size": size}

    def test_a_reply_may_go_on_until_the_context_is_full(self, tokens: TokenEngine, case: EngineCase) -> None:
        size = _fillable(tokens)
        request = _completion(tokens, size - 20, ignore_eos=True)
        finish = ask(tokens, request, case.patience).ended_well()
        assert (finish.reason, finish.usage.total_tokens) == ("length", size)

    def test_as_many_sequences_run_side_by_side_as_it_says(self, tokens: TokenEngine, case: EngineCase) -> None:
        count = min(tokens.max_sequences, _MOST_TOGETHER)
        requests = [question(f"Say the number {n}.", max_tokens=4) for n in range(count + 1)]
        for reply in ask_together(tokens, requests, case.patience):
            reply.ended_well()

    def test_a_step_that_fails_ends_its_replies_once_and_nothing_else(
        self, tokens: TokenEngine, case: EngineCase
    ) -> None:
        for _ in range(min(tokens.max_sequences, _MOST_TOGETHER) + 1):
            pipe = Pipe(Failing(tokens, 2), case.patience)
            pipe.start(question())
            [reply] = pipe.finish()
            assert reply.finish.reason == "error"
            assert "the device is gone" in str(reply.finish.error)
        ask(tokens, question(), case.patience).ended_well()

    def test_cancelling_what_isnt_there_is_nothing(self, tokens: TokenEngine, case: EngineCase) -> None:
        tokens.cancel(987_654)
        tokens.add(Sequence(5, tokens.tokenize("Hello", False), GREEDY, 4))
        tokens.cancel(5)
        tokens.cancel(5)
        assert all(out.sequence_id != 5 for out in tokens.step()), "a cancelled sequence goes on"
        ask(tokens, question(), case.patience).ended_well()


class Scripted(Wrapped):
    """An engine that says given tokens; everything else is the real one's."""

    def __init__(self, engine: TokenEngine, script: list[int]) -> None:
        super().__init__(engine)
        self._script = deque(script)
        self._running: list[int] = []

    def add(self, sequence: Sequence) -> None:
        """Take a sequence on."""
        self._running.append(sequence.id)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence."""
        self._running = [number for number in self._running if number != sequence_id]

    def step(self) -> list[TokenOut]:
        """The next token of the script."""
        return [TokenOut(number, self._script.popleft()) for number in self._running]


class Failing(Wrapped):
    """An engine whose step fails after the real one has made it."""

    def __init__(self, engine: TokenEngine, at: int) -> None:
        super().__init__(engine)
        self._left = at

    def step(self) -> list[TokenOut]:
        """One step of the real engine's; the last one's result is lost."""
        outs = super().step()
        self._left -= 1
        if self._left <= 0:
            raise RuntimeError("the device is gone")
        return outs


def _fillable(tokens: TokenEngine) -> int:
    size = tokens.facts.context_size
    if size > _FILL:
        pytest.skip(f"filling a context of {size} tokens takes long; give load options with at most {_FILL}")
    return size


def _completion(tokens: TokenEngine, count: int, **more: object) -> CompletionRequest:
    """A prompt of exactly so many tokens."""
    begin = 0 if tokens.facts.bos_token is None else 1
    for unit in (" a", "a", " word", "."):
        for tail in ("", "!", " b", "\n", "?!"):
            low, high = 0, count
            while low < high:
                middle = (low + high) // 2
                fits = begin + len(tokens.tokenize(unit * middle + tail, False)) >= count
                low, high = (low, middle) if fits else (middle + 1, high)
            text = unit * low + tail
            if begin + len(tokens.tokenize(text, False)) == count:
                return CompletionRequest(text, **{"sampling": GREEDY, **more})  # type: ignore[arg-type]
    pytest.skip(f"no text of exactly {count} tokens was found")
