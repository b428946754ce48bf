"""Which sequences are saved to disk, and when: while nothing runs, a piece at a time, and at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator

from myllm_llamacpp.context import Ints
from myllm_llamacpp.disk import Disk, Saved
from myllm_llamacpp.slots import History, Slot, Slots
from myllm_llamacpp.states import State

_LEAST = 256
"""Tokens of a sequence that is worth a file: fewer are read anew as quickly."""
_GROWTH = 8  # a sequence is saved again when it has grown by an eighth
_LEAST_AT_END = 64
_END_SECONDS = 3.0
"""What saving may take when the model is unloaded."""
_AN_HOUR = 3600.0


class Saver:
    """Saves the sequences that were used last.

    A conversation is saved again when it has grown by an eighth, and at the end; in an hour as much is written as the
    cache may hold, so that a busy day doesn't wear the disk out.
    """

    def __init__(self, slots: Slots, disk: Disk) -> None:
        """Begin with nothing to do."""
        self._slots = slots
        self._disk = disk
        self._writing: Iterator[None] | None = None
        self._allowed = float(disk.limit)
        self._since = time.monotonic()

    def idle(self) -> bool:
        """Do a piece of work that takes some milliseconds. False: there is nothing to do."""
        if self._writing is None:
            state = self._next(at_end=False)
            if state is None:
                return False
            self._begin(state)
        elif next(self._writing, self) is self:
            self._writing = None
        return True

    def close(self) -> None:
        """Save what isn't saved yet, the sequences that were used last first, as far as time allows."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            if self._writing is None:
                state = self._next(at_end=True)
                if state is None:
                    return
                self._begin(state)
            elif next(self._writing, self) is self:
                self._writing = None
        self._writing = None  # what is half written is deleted

    def _begin(self, state: State) -> None:
        self._allowed -= state.data.nbytes
        self._writing = self._disk.write(state, self._replaced(state.tokens))

    def _next(self, at_end: bool) -> State | None:
        now = time.monotonic()
        self._allowed = min(self._disk.limit, self._allowed + (now - self._since) * self._disk.limit / _AN_HOUR)
        self._since = now
        if self._allowed <= 0 and not at_end:
            return None
        for held in self._held():
            if self._is_worth_it(held.tokens, at_end) and self._disk.has_room(self._size(held), held.used):
                state = self._slots.copy(held) if isinstance(held, Slot) else held
                if state is not None:
                    return state
        return None

    def _size(self, held: Slot | State) -> int:
        return self._slots.size(held) if isinstance(held, Slot) else held.data.nbytes

    def _held(self) -> list[Slot | State]:
        """All that could be saved, what was used last first."""
        return sorted((*self._slots.resident(), *self._slots.states), key=lambda held: -held.used)

    def _is_worth_it(self, tokens: Ints, at_end: bool) -> bool:
        if len(tokens) < _LEAST:
            return False
        history = History(tokens)
        history.append(-1)
        saved = max((self._slots.usable(other.tokens, history, other.first) for other in self._disk), default=0)
        if not self._slots.every_prefix:
            return saved < len(tokens)
        return len(tokens) - saved >= (_LEAST_AT_END if at_end else max(_LEAST, len(tokens) // _GROWTH))

    def _replaced(self, tokens: Ints) -> list[Saved]:
        """The files that say hardly more when these tokens are saved."""
        if not self._slots.every_prefix:
            return []
        history = History(tokens)
        return [saved for saved in self._disk if len(saved.tokens) - history.common(saved.tokens) < _LEAST_AT_END]
