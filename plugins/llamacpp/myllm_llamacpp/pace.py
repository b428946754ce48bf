"""How many prompt tokens one step may read, so that nobody waits long for the next one."""

from __future__ import annotations

_START = 64
_LEAST = 8
_STALL = 3.0
"""A step that also reads a prompt may take this many times a plain one."""
_SHORT_STALL = 0.040
"""Seconds that nobody notices, however quick a plain step is."""
_IDLE_STEP = 0.5
"""Seconds of a step when nobody waits for a token: new requests and cancels wait for its end."""
_NEW = 0.3  # weight of the newest measurement


class Pace:
    """Learns from each step's time what a plain step costs, and what a prompt token adds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._step: float | None = None
        self._token: float | None = None

    @property
    def token(self) -> float | None:
        """Seconds that reading a prompt token takes, when that is known."""
        return self._token

    @property
    def step(self) -> float | None:
        """Seconds that a step without prompt tokens takes, when that is known."""
        return self._step

    def chunk(self, streams: int, prompts: int = 1) -> int:
        """Tokens of ``prompts`` for the next step beside ``streams`` sequences that each write one."""
        if self._token is None:
            return min(self._limit, _START)
        return max(_LEAST, min(self._limit, int(self.seconds(streams, prompts) / self._token)))

    def seconds(self, streams: int, prompts: int = 1) -> float:
        """What may be done in the next step beside ``streams`` sequences that each write a token.

        Where more wait for their first token than for their next one, it may take longer in their proportion: each step
        costs something by itself, so that all would get less from many small ones.
        """
        if not streams:
            return _IDLE_STEP
        plain = self._plain(streams)
        return min(max((_STALL - 1) * plain, _SHORT_STALL - plain) * max(1.0, prompts / streams), _IDLE_STEP)

    def measured(self, streams: int, prompt: int, seconds: float) -> None:
        """Take note of a step that wrote ``streams`` tokens and read ``prompt`` others."""
        if not prompt:
            self._step = _blend(self._step, seconds)
        elif prompt >= _LEAST:
            plain = self._plain(streams) if streams else 0.0
            self._token = _blend(self._token, max(seconds - plain, 0.1 * seconds) / prompt)

    def _plain(self, streams: int) -> float:
        # No plain step may have been seen since these streams began; each costs a prompt token at least.
        return max(self._step or 0.0, streams * (self._token or 0.0))


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
