"""A conversation made to fit the server's context, by the rule of every engine: what is left out is reported."""

from __future__ import annotations

from dataclasses import replace

from myllm_core import ChatRequest, ContextReport, Message, Usage
from myllm_core.chat.turns import Turns, check_length, prompt_limit
from myllm_core.errors import ContextLengthError
from myllm_remote.measure import Measure


class Fit:
    """One request: counted by the server before it is sent, or cut back by what the server refuses it with."""

    def __init__(self, request: ChatRequest, measure: Measure) -> None:
        self._asked, self._measure = request, measure
        self._turns = Turns(request.messages)
        self._out = 0  # turns
        self._full = self._kept = 0  # tokens, 0 where nobody has counted
        self._limit = request.max_tokens

    @property
    def request(self) -> ChatRequest:
        """What is sent: a reply may be as long as there is room."""
        return replace(self._asked, messages=tuple(self._turns.without(self._out)), max_tokens=self._limit)

    def count(self) -> None:
        """Leave out the fewest turns that do, where the server counts. Raises ``ContextLengthError``."""
        if self._measure.size and self._measure.surely_fits(self._asked):
            return
        found = self._tokens(list(self._asked.messages))
        size = self._measure.size
        if found is None or not size:
            return
        self._full = self._kept = found
        limit = prompt_limit(size, self._asked.max_tokens)
        if found > limit and self._asked.fit == "drop" and self._turns.droppable:
            self._out = self._turns.fewest(limit, lambda messages: self._tokens(messages) or 0)
            self._kept = self._tokens(self._turns.without(self._out)) or 0
        check_length(self._kept, size, self._full)
        if self._limit is not None:
            self._limit = min(self._limit, size - self._kept)

    def _tokens(self, messages: list[Message]) -> int | None:
        return self._measure.tokens(replace(self._asked, messages=tuple(messages)))

    def shorten(self, error: ContextLengthError) -> bool:
        """Ask for less after the server's refusal; False where nothing is left to leave out."""
        prompt, size = error.data.get("prompt_tokens", 0), error.data.get("context_size", 0)
        self._measure.learn(size)
        limit = prompt_limit(size, self._asked.max_tokens)
        if 0 < prompt <= limit and self._limit is not None and self._limit > size - prompt:
            self._limit = size - prompt  # it is the reply that has no room
            return True
        if self._asked.fit != "drop" or self._out >= self._turns.droppable:
            return False
        if not self._out:
            self._full = prompt
        self._out = self._enough(1 - limit / prompt) if prompt > limit > 0 else self._half()
        return True

    def _half(self) -> int:
        return self._out + max(1, (self._turns.droppable - self._out + 1) // 2)

    def _enough(self, share: float) -> int:
        """Turns to leave out so that this share of the text goes."""
        length = _length(self._turns.without(self._out))
        counts = range(self._out + 1, self._turns.droppable + 1)
        goes = ((count, length - _length(self._turns.without(count))) for count in counts)
        return next((count for count, gone in goes if gone >= share * length), self._turns.droppable)

    def report(self, usage: Usage) -> ContextReport | None:
        """What was left out, once the server has said how long the prompt was; None while no size is known."""
        if not self._measure.size and not self._out:
            return None
        kept = self._kept or usage.prompt_tokens
        gone = max(0, self._full - kept) if self._out and kept else 0
        return ContextReport(self._measure.size, tuple(self._turns.indexes(self._out)), gone)


def _length(messages: list[Message]) -> int:
    return sum(len(message.content) + sum(len(call.arguments) for call in message.tool_calls) for message in messages)
