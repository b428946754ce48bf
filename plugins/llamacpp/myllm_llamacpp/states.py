"""Copies of sequences that left the KV cache, kept in memory for a prompt that begins the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from myllm_core.machine import free_memory
from myllm_llamacpp.context import Ints

Bytes = npt.NDArray[np.uint8]

_AUTO_SHARE = 8  # of the memory that is free after loading
_AUTO_MOST = 4 * 2**30
_LOOK_EVERY = 1.0
"""Seconds between two looks at how much memory is free: the system takes as long to tell as a step takes to plan."""


@dataclass(slots=True, eq=False)
class State:
    """What llama.cpp kept of ``tokens``, used last at ``used`` (seconds, wall clock).

    ``first`` is the first position that a sliding window had left.
    """

    tokens: Ints
    first: int
    data: Bytes
    used: float


class States:
    """Copies of up to ``limit`` bytes; those that were used longest ago give way."""

    def __init__(self, limit: int) -> None:
        """Begin empty. ``limit`` 0 keeps nothing."""
        self.limit = limit
        self._kept: list[State] = []
        self._free, self._looked = 0, -_LOOK_EVERY

    def __iter__(self) -> Iterator[State]:
        return iter(self._kept)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(state.data.nbytes for state in self._kept)

    def takes(self, size: int) -> bool:
        """Whether a copy of so many bytes would be kept; memory that others need more isn't taken."""
        return 0 < size <= self.limit and size <= self._free_memory() // 2

    def _free_memory(self) -> int:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._free, self._looked = free_memory(), now
        return self._free

    def put(self, state: State) -> None:
        """Keep a copy that ``takes`` agreed to."""
        self._kept.append(state)
        while self.size > self.limit:
            self._kept.remove(min(self._kept, key=lambda kept: kept.used))

    def drop(self, unwanted: Callable[[State], bool]) -> None:
        """Give up the copies that aren't wanted any more."""
        self._kept = [state for state in self._kept if not unwanted(state)]

    def clear(self) -> None:
        """Give all memory back."""
        self._kept.clear()


def automatic_limit() -> int:
    """Bytes to keep when nobody said how many."""
    return min(free_memory() // _AUTO_SHARE, _AUTO_MOST)
