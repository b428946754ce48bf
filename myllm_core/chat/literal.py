"""Keeping what people write from becoming control tokens.

Before rendering, every marker (the text of a control token) inside a message is put between two Unicode
noncharacters that occur nowhere in the messages. After rendering, the text between them is tokenized on its own
as plain text, in two parts, so that not even a tokenizer that always matches the marker can see it. Everything
else is tokenized as the model was trained: in one piece, control tokens and all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from myllm_core.errors import InvalidRequest

Tokenize = Callable[[str, bool], list[int]]
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Literals:
    """Marks what must stay literal, and tokenizes with the marks."""

    def __init__(self, markers: Iterable[str]) -> None:
        ordered = sorted({marker for marker in markers if marker.strip()}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def protect(self, value: Any, fence: Sequence[str]) -> Any:
        """A copy of JSON values in which every marker stands between the two characters of ``fence``."""
        if isinstance(value, str):
            return self._pattern.sub(lambda m: f"{fence[0]}{m[0]}{fence[1]}", value) if self._pattern else value
        if isinstance(value, list):
            return [self.protect(item, fence) for item in value]
        if isinstance(value, dict):
            return {self.protect(key, fence): self.protect(item, fence) for key, item in value.items()}
        return value

    def tokenize(self, text: str, fence: Sequence[str], tokenize: Tokenize) -> list[int]:
        """Token ids of a rendered prompt; what stands between the fence's characters is plain text."""
        opening, closing = fence
        tokens: list[int] = []
        for index, part in enumerate(re.split(f"{opening}([^{closing}]*){closing}", text)):
            if index % 2 == 0:
                tokens += tokenize(part, True) if part else []
            else:
                tokens += self.plain(part, tokenize)
        return tokens

    def plain(self, text: str, tokenize: Tokenize) -> list[int]:
        """Token ids of text in which no marker may become a token."""
        found = self._pattern.search(text) if self._pattern else None
        if found is None:
            return tokenize(text, False) if text else []
        cut = found.start() + 1
        return tokenize(text[:cut], False) + self.plain(text[cut:], tokenize)


def choose_fence(texts: Iterable[str], count: int = 2) -> tuple[str, ...]:
    """Noncharacters that occur in none of the texts. Raises ``InvalidRequest`` when all are used."""
    used = set().union(*(set(text) & set(_NONCHARACTERS) for text in texts)) if texts else set()
    free = [char for char in _NONCHARACTERS if char not in used]
    if len(free) < count:
        raise InvalidRequest("the messages use nearly all of Unicode's noncharacters U+FDD0 to U+FDEF; remove some")
    return tuple(free[:count])
