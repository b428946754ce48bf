"""Prompt lookup: guess the next tokens from what came after the same words earlier, and have them checked at once.

A wrong guess costs time, so each is worth it or not by what was measured: how often such guesses were right, which
costs nothing to know, since each token that is written says whether the guess would have been right; what a further
row in a forward pass costs; and whether the guesses that were made paid.
"""

from __future__ import annotations

import math

import numpy as np

from myllm_llamacpp.context import Ints

LONGEST = 8
"""Tokens of a guess."""

NO_GUESS: Ints = np.empty(0, np.int32)
"""Nothing is guessed."""

_MARGIN, _MOST_MARGIN = 1.2, 20.0
_STRICTER, _LAXER = 1.05, 0.999  # a step
_GAIN = 1.1  # what guesses must bring
_MEMORY = 0.9  # of what was gained, a step
_WEIGHT = 0.1  # of the newest measurement
_RETURN = 0.01  # how quickly a row's measured cost goes back to that of a prompt token when no guess is made
_READ_AT_ONCE = 2048
_PLAIN_EACH = 16
"""So many steps with guesses are followed by one without, to see what that costs now."""


class Lookup:
    """Where the last words of a sequence were before: an index of three and of two tokens that grows with it."""

    def __init__(self, vocab_size: int, prompt: int) -> None:
        """Begin with nothing read; the first ``prompt`` tokens will be the prompt's."""
        self._vocab_size = vocab_size
        self._prompt = prompt
        self._threes: dict[int, int] = {}
        self._twos: dict[int, int] = {}
        self._read = 0
        self._next = 0
        self._streak = 0

    def follow(self, tokens: Ints, rates: Rates) -> None:
        """Take in what is new of a sequence's ``tokens``; tell ``rates`` which of the written ones were foreseen."""
        end = min(len(tokens), self._read + _READ_AT_ONCE)
        for position, token in enumerate(tokens[self._read : end].tolist(), self._read):
            if self._next:
                right = int(tokens[self._next]) == token
                if position >= self._prompt:
                    rates.saw(self._streak, right)
                self._streak = self._streak + 1 if right else 0
                self._next = self._next + 1 if right else 0
            if position >= 2:
                self._index(tokens, position)
        self._read = end

    def _index(self, tokens: Ints, position: int) -> None:
        one, two, three = tokens[position - 2 : position + 1].tolist()
        pair = two * self._vocab_size + three
        triple = one * self._vocab_size * self._vocab_size + pair
        if not self._next:
            self._next = self._threes.get(triple) or self._twos.get(pair, 0)
        self._threes[triple] = self._twos[pair] = position + 1

    def guess(self, tokens: Ints, most: int, rates: Rates) -> Ints:
        """What may come after ``tokens``, all of which were taken in: as many tokens as are worth it, often none."""
        if not self._next or self._read < len(tokens):
            return NO_GUESS
        count = min(most, rates.worth(self._streak), len(tokens) - self._next)
        guess = tokens[self._next : self._next + max(0, count)]
        images = (guess < 0).nonzero()[0]  # their rows can't be written
        return guess[: images[0]].copy() if len(images) else guess.copy()


class Rates:
    """How often a guess is right after so many right ones, and what guesses cost; for all sequences of an engine."""

    def __init__(self, always: bool = False) -> None:
        """Begin without trust in guesses; ``always`` makes them whatever they cost."""
        self._always = always
        self._right = [0.3] * 5
        self._plain: dict[int, float] = {}
        self._row: float | None = None
        self._margin = _MARGIN
        self._gained = self._spent = 0.0
        self._limit = math.inf
        self._since_plain = 0

    def saw(self, streak: int, right: bool) -> None:
        """A guess after ``streak`` right ones would have been right, or not."""
        level = min(streak.bit_length(), len(self._right) - 1)
        self._right[level] += _WEIGHT * (right - self._right[level])

    def prepare(self, streams: int, prompt_row: float | None) -> bool:
        """Whether a step of so many streams may hold guesses; ``prompt_row`` is what reading a prompt token costs."""
        if self._always:
            self._limit = -1.0
            return True
        plain = self._plain.get(streams)
        if plain is None or prompt_row is None:
            return False
        self._row = prompt_row if self._row is None else self._row + _RETURN * (prompt_row - self._row)
        self._limit = self._margin * max(self._row, self._row_beside(streams)) * streams / plain
        return self._limit < 1 and self._since_plain < _PLAIN_EACH

    def _row_beside(self, streams: int) -> float:
        """What the last of so many streams added to a plain step: unlike a prompt's, its row had logits computed."""
        fewer = max((count for count in self._plain if count < streams), default=0)
        return (self._plain[streams] - self._plain[fewer]) / (streams - fewer) if fewer else 0.0

    def worth(self, streak: int) -> int:
        """How many tokens are worth guessing after ``streak`` right guesses."""
        chance, count = 1.0, 0
        while count < LONGEST:
            chance *= self._right[min((streak + count).bit_length(), len(self._right) - 1)]
            if chance <= self._limit:
                break
            count += 1
        return count

    def measured(self, streams: int, guessed: int, right: int, seconds: float) -> None:
        """A step that wrote a token of each stream, and ``right`` more of so many guessed ones, took ``seconds``."""
        plain = self._plain.get(streams)
        self._margin = max(_MARGIN, self._margin * _LAXER)
        if not guessed:
            self._since_plain = 0
            self._plain[streams] = seconds if plain is None else plain + _WEIGHT * (seconds - plain)
        elif plain is not None and self._row is not None:
            self._since_plain += 1
            self._row += _WEIGHT * (max(0.0, seconds - plain) / guessed - self._row)
            self._gained = _MEMORY * self._gained + (streams + right) * plain / streams
            self._spent = _MEMORY * self._spent + seconds
            if self._gained < _GAIN * self._spent:
                self._margin = min(_MOST_MARGIN, self._margin * _STRICTER)
