"""Which turns of a conversation are left out so that it fits the context: one rule, whoever counts its tokens."""

from __future__ import annotations

from collections.abc import Callable

from myllm_core.errors import ContextLengthError
from myllm_core.types import Message

_REPLY_ROOM = 512


class Turns:
    """A conversation as turns: what may be left out, from the oldest on, and what must stay."""

    def __init__(self, messages: tuple[Message, ...]) -> None:
        self._messages = messages
        starts = [i for i, message in enumerate(messages) if message.role == "user"]
        self._starts = starts or [len(messages)]
        self.droppable = len(starts) - 1 if starts else 0

    def indexes(self, count: int) -> list[int]:
        """Indexes of the messages in the ``count`` oldest turns; system messages always stay."""
        span = range(self._starts[0], self._starts[count]) if count else range(0)
        return [i for i in span if self._messages[i].role != "system"]

    def without(self, count: int) -> list[Message]:
        """The messages without the ``count`` oldest turns."""
        out = set(self.indexes(count))
        return [message for i, message in enumerate(self._messages) if i not in out]

    def fewest(self, limit: int, tokens_of: Callable[[list[Message]], int]) -> int:
        """The fewest of the oldest turns to leave out for a prompt of ``limit`` tokens; all if none is enough."""
        low, high = 1, self.droppable
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if tokens_of(self.without(middle)) <= limit else (middle + 1, high)
        return low


def prompt_limit(size: int, max_tokens: int | None) -> int:
    """How many tokens of a context of ``size`` a conversation may have, so that there is room for a reply."""
    return size - min(max_tokens or _REPLY_ROOM, size // 4)


def check_length(prompt: int, size: int, full: int | None = None) -> None:
    """Raise ``ContextLengthError`` for a prompt that leaves no room; ``full`` are its tokens with earlier turns."""
    if prompt < size:
        return
    more = "" if full in (None, prompt) else f" (with earlier turns left out; {full} with them)"
    raise ContextLengthError(
        f"the prompt has {prompt} tokens{more}, the context holds {size} with the reply in it; "
        "shorten the message, or load the model with a larger context",
        prompt_tokens=prompt,
        context_size=size,
    )
