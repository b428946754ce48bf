"""Choosing the next token from its logits: for plugins whose backend gives these as an array.

In numpy, which such a plugin brings along. On the backend's own array, since copying the whole vocabulary for each
token, as llama.cpp's sampler chain does, takes ten times the time.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from myllm_core.engine import TokenMask
from myllm_core.errors import EngineError
from myllm_core.types import Sampling

Floats = npt.NDArray[np.float32]
Indexes = npt.NDArray[np.intp]

_BLOCK = 256
_ROWS = 64


class Sampler:
    """How one sequence chooses its tokens; it has a random state of its own, so other sequences don't matter.

    The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, draw.
    """

    def __init__(self, sampling: Sampling, context_size: int, prompt: Sequence[int]) -> None:
        """Begin after a prompt, whose last tokens the penalties see."""
        self._sampling = sampling
        self._random = random.Random(sampling.seed)
        window = min(sampling.repeat_last_n, context_size)
        neutral = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.0, 0.0, 0.0)
        self._penalties = None if neutral or not window else _Penalties(sampling, window, prompt)
        self._biased: Indexes = np.array([token for token, _ in sampling.logit_bias], np.intp)
        self._bias: Floats = np.array([bias for _, bias in sampling.logit_bias], np.float32)

    def choose(self, logits: Floats, allowed: TokenMask | None = None) -> int:
        """The next token, one that ``allowed`` allows. Raises ``EngineError`` when the logits are no numbers.

        The token that would have been chosen anyway is asked about first; only when it isn't allowed the others are
        ruled out and the choice is made again, from the same distribution. The logits are left as they were.
        """
        if not len(self._biased):
            return self._penalised(logits, allowed)
        before = logits[self._biased]
        logits[self._biased] = before + self._bias
        try:
            return self._penalised(logits, allowed)
        finally:
            logits[self._biased] = before

    def take(self, token: int) -> None:
        """Note a token that came without being chosen: the penalties see it."""
        if self._penalties is not None:
            self._penalties.take(token)

    def _penalised(self, logits: Floats, allowed: TokenMask | None) -> int:
        if self._penalties is None:
            return self._choose(logits, allowed)
        before = self._penalties.apply(logits)
        try:
            token = self._choose(logits, allowed)
        finally:
            logits[self._penalties.tokens] = before
        self._penalties.take(token)
        return token

    def _choose(self, logits: Floats, allowed: TokenMask | None) -> int:
        token = self._pick(logits)
        if allowed is None or allowed.allows(token):
            return token
        bits = np.unpackbits(np.frombuffer(allowed.mask(), np.uint8), count=len(logits), bitorder="little")
        tokens = bits.nonzero()[0]
        if not len(tokens):
            raise EngineError("no token fits the grammar here; make the grammar wider")
        return int(tokens[self._pick(logits[tokens])])

    def _pick(self, logits: Floats) -> int:
        how = self._sampling
        likeliest = int(logits.argmax())
        highest = float(logits[likeliest])
        if not math.isfinite(highest):  # argmax finds the first NaN, so this sees any
            raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
        if how.temperature <= 0 or how.top_k == 1:
            return likeliest
        if how.top_k <= 0 and how.top_p >= 1 and how.min_p <= 0:
            return _draw((logits - highest) / np.float32(how.temperature), self._random.random())
        likely = self._likely(logits, highest)
        return int(likely[_draw((logits[likely] - highest) / np.float32(how.temperature), self._random.random())])

    def _likely(self, logits: Floats, highest: float) -> Indexes:
        """The tokens that top-k, top-p and min-p leave."""
        how = self._sampling
        floor = math.log(how.min_p) if how.min_p > 0 else -math.inf
        if how.top_k <= 0 and how.top_p >= 1:
            return (logits >= np.float32(highest + floor)).nonzero()[0]
        if how.top_k <= 0:
            return _nucleus(logits, highest, how.top_p, floor)
        likely = best(logits, how.top_k)
        relative = logits[likely] - highest
        count = len(likely)
        if how.top_p < 1:
            sums = np.exp(relative).cumsum()
            count = int(np.searchsorted(sums, how.top_p * sums[-1])) + 1
        if how.min_p > 0:
            count = min(count, int(np.searchsorted(-relative, -floor, "right")))
        return likely[:count]


class _Penalties:
    """Llama.cpp's penalties on the tokens of a window: only their logits are touched."""

    def __init__(self, sampling: Sampling, window: int, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._window = deque(map(int, prompt[-window:]), window)
        self._counts = Counter(self._window)
        self.tokens: Indexes = np.empty(0, np.intp)

    def apply(self, logits: Floats) -> Floats:
        """Change the logits of ``tokens``; what they were before."""
        how = self._sampling
        self.tokens = np.fromiter(self._counts, np.intp, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
        before = logits[self.tokens]
        scaled = np.where(before <= 0, before * np.float32(how.repeat_penalty), before / np.float32(how.repeat_penalty))
        logits[self.tokens] = scaled - counts * np.float32(how.frequency_penalty) - np.float32(how.presence_penalty)
        return before

    def take(self, token: int) -> None:
        """A token was chosen; the oldest one leaves the window."""
        if len(self._window) == self._window.maxlen:
            oldest = self._window[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._window.append(token)
        self._counts[token] += 1


def best(logits: Floats, count: int) -> Indexes:
    """The indexes of the ``count`` highest logits, the highest first.

    The vocabulary isn't sorted: of so many columns with their highest logit above a limit, each holds one above it. So
    the ``count``-th highest of these is a limit that leaves little more than is wanted.
    """
    columns = len(logits) // _ROWS
    if count <= columns:
        highest = logits[: _ROWS * columns].reshape(_ROWS, columns).max(axis=0)
        limit = np.partition(highest, columns - count)[columns - count]
        indexes: Indexes = (logits >= limit).nonzero()[0]
    else:
        indexes = np.arange(len(logits))
    indexes = indexes[np.argsort(-logits[indexes], kind="stable")[:count]]
    return indexes


def _nucleus(logits: Floats, highest: float, share: float, floor: float) -> Indexes:
    """The likeliest tokens that have the probability ``share`` together, but none below ``floor`` from the highest.

    All tokens below (1 - share) / n have less than 1 - share together, so only the others need sorting.
    """
    weights = np.exp(logits - highest)
    total = float(weights.sum())
    needed = share * total
    indexes: Indexes = (weights >= (total - needed) / len(weights)).nonzero()[0]
    weights = weights[indexes]
    ordered = np.sort(weights)[::-1]
    count = int(np.searchsorted(ordered.cumsum(dtype=np.float64), needed))
    limit = max(float(ordered[min(count, len(ordered) - 1)]), math.exp(floor))
    indexes = indexes[weights >= np.float32(limit)]
    return indexes


def _draw(relative: Floats, random_number: float) -> int:
    """An index drawn with the probability that ``exp(relative)`` is in proportion to.

    Sums blocks first, then looks into one: the running sum of a whole vocabulary takes half a millisecond.
    """
    weights = np.exp(relative)
    starts = np.arange(0, len(weights), _BLOCK)
    ends = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    point = random_number * ends[-1]
    block = min(int(np.searchsorted(ends, point, "right")), len(ends) - 1)
    inside = weights[starts[block] : starts[block] + _BLOCK].cumsum(dtype=np.float64)
    rest = point - (ends[block - 1] if block else 0.0)
    chosen = int(starts[block]) + min(int(np.searchsorted(inside, rest, "right")), len(inside) - 1)
    return chosen if weights[chosen] > 0 else int(weights.argmax())  # rounding may lead past the last one


def log_probabilities(logits: Floats, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural-log probability of ``token`` and of the ``count`` likeliest tokens, best first; before temperature."""
    highest = float(logits.max())
    total = highest + math.log(np.exp(logits - highest).sum())
    chosen = float(logits[token]) - total
    if count <= 0:
        return chosen, []
    likely = best(logits, min(count, len(logits)))
    return chosen, [
        (token, logit - total) for token, logit in zip(likely.tolist(), logits[likely].tolist(), strict=True)
    ]
