"""From bytes of tokens to text: UTF-8 across tokens, reasoning apart from the answer, stop strings across tokens.

Each part is fed pieces and gives back what is certain; the rest is held until more comes or ``flush``.
"""

from __future__ import annotations

import codecs


class StopMatcher:
    """Finds the first of several stop strings in a stream and never lets a part of one out."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Text that is certainly no part of a stop string; after ``found`` is set, nothing more."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        held = self._held + text
        hits = [(at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return held[:at]
        keep = max(overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held, at the end of the stream."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that ``marker`` begins with, short of all of it."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


class ReasoningSplitter:
    """Splits ``<think>…</think>`` from the answer; only at the start of a reply, where models put it."""

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self, enabled: bool, inside: bool = False) -> None:
        self._state = "inside" if inside else "start" if enabled else "answer"
        self._held = ""
        self._begun = False

    @property
    def inside(self) -> bool:
        """Whether the reasoning still goes on."""
        return self._state == "inside"

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, answer) that are certain."""
        if self._state == "answer":
            return "", text
        self._held += text
        if self._state == "start" and not self._open():
            return self._take_answer() if self._state == "answer" else ("", "")
        return self._inside()

    def _open(self) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(self.OPEN):
            self._held = stripped[len(self.OPEN) :]
            self._state = "inside"
            return True
        if not self.OPEN.startswith(stripped):
            self._state = "answer"
        return False

    def _inside(self) -> tuple[str, str]:
        if self._state == "gap":
            return "", self._gap()
        at = self._held.find(self.CLOSE)
        if at >= 0:
            reasoning = self._held[:at] if self._begun else self._held[:at].lstrip("\n")
            self._held = self._held[at + len(self.CLOSE) :]
            self._state = "gap"
            return reasoning, self._gap()
        if not self._begun:
            self._held = self._held.lstrip("\n")
            self._begun = bool(self._held)
        keep = overlap(self._held, self.CLOSE)
        reasoning, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return reasoning, ""

    def _gap(self) -> str:
        """The blank lines between reasoning and answer belong to neither."""
        self._held = self._held.lstrip("\n")
        if not self._held:
            return ""
        self._state = "answer"
        return self._take_answer()[1]

    def _take_answer(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return "", held

    def flush(self) -> tuple[str, str]:
        """What was held, at the end of the stream."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "inside" else ("", held)


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Decodes UTF-8 piece by piece; what isn't UTF-8 becomes U+FFFD, what may become a character is held."""
    return codecs.getincrementaldecoder("utf-8")("replace")
