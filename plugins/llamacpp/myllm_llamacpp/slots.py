"""Slots: the sequences that llama.cpp's cache can hold, running or resident, and which prefix of one helps another."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import numpy as np

from myllm_llamacpp.context import Context, Ints


class History:
    """The tokens of a sequence, prompt and reply: an array that grows."""

    def __init__(self, tokens: Ints | None = None) -> None:
        self.length = 0 if tokens is None else len(tokens)
        self._data = np.empty(max(256, 2 * self.length), np.int32)
        if tokens is not None:
            self._data[: self.length] = tokens

    def append(self, token: int) -> None:
        """Add a token."""
        if self.length == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self.length] = token
        self.length += 1

    def slice(self, start: int, end: int) -> Ints:
        """A view of the tokens from ``start`` to before ``end``."""
        return self._data[start:end]


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence id of the cache: ``cached`` tokens of ``history`` are in it. ``busy`` while a request uses it.

    The first ``shared`` of them lie in cells that were another running slot's when this one was claimed.
    """

    id: int
    history: History = field(default_factory=History)
    cached: int = 0
    shared: int = 0
    busy: bool = False
    used: int = 0


class Slots:
    """All slots of a context, and the rules of sharing and giving up what they hold.

    Where a sequence can't be cut short (recurrent and hybrid models), a slot helps only when the new prompt goes on
    exactly where it ends. Where layers look through a sliding window, the tokens before the cut must still be there.
    """

    def __init__(self, context: Context, *, can_cut: bool, shared: bool, window: int) -> None:
        self._context = context
        self._can_cut = can_cut
        self._can_copy = shared and can_cut and window == 0
        self._window = window
        self._slots = [Slot(number) for number in range(context.sequences)]
        self._clock = count(1)

    def claim(self, history: History) -> Slot:
        """Take a free slot for a prompt, with as much of it cached as some slot can give; never the last token.

        There must be a free slot.
        """
        free = [slot for slot in self._slots if not slot.busy]
        source, prefix = self._source(history)
        if source is None or prefix == 0:
            return self._take(self._oldest(free), history, 0)
        others = [slot for slot in free if slot is not source]
        if not source.busy and (2 * prefix >= source.cached or not others or not self._can_copy):
            return self._take(source, history, prefix)
        target = self._oldest(others)
        self.forget(target)
        self._context.copy(source.id, target.id, prefix)
        target.cached = prefix
        target.shared = prefix if source.busy else 0
        return self._take(target, history, prefix)

    def shareable(self, history: History) -> int:
        """How many of a prompt's first tokens a running slot holds in cells that can be shared."""
        if not self._can_copy:
            return 0
        return max((self._prefix(slot, history) for slot in self._slots if slot.busy), default=0)

    def _source(self, history: History) -> tuple[Slot | None, int]:
        """The slot whose prefix is to be used, and how long that is."""
        best, longest = None, 0
        for slot in self._slots:
            if slot.busy and not self._can_copy:
                continue
            prefix = self._prefix(slot, history)
            if prefix > longest or (best is not None and prefix == longest and best.busy and not slot.busy):
                best, longest = slot, prefix
        return best, longest

    def _prefix(self, slot: Slot, history: History) -> int:
        most = min(slot.cached, history.length - 1)
        if most <= 0:
            return 0
        differs = slot.history.slice(0, most) != history.slice(0, most)
        first = int(differs.argmax())
        prefix = first if differs[first] else most
        if not self._can_cut and prefix < slot.cached:
            return 0
        return prefix

    def _take(self, slot: Slot, history: History, prefix: int) -> Slot:
        if prefix < slot.cached and not (prefix and self._context.remove(slot.id, prefix)):
            self.forget(slot)
            prefix = 0
        if prefix and self._window and not 0 <= self._context.first(slot.id) <= max(0, prefix - self._window):
            self.forget(slot)
            prefix = 0
        slot.history, slot.cached, slot.shared, slot.busy = history, prefix, min(slot.shared, prefix), True
        return slot

    def release(self, slot: Slot) -> None:
        """A request is done with the slot; what it holds stays, for a prompt that begins the same."""
        slot.busy = False
        slot.used = next(self._clock)

    def forget(self, slot: Slot) -> None:
        """Empty a slot's cache."""
        self._context.remove(slot.id)
        slot.history, slot.cached, slot.shared = History(), 0, 0

    def evict(self) -> bool:
        """Empty the resident slot that was used longest ago. False: there is none."""
        resident = [slot for slot in self._slots if not slot.busy and slot.cached]
        if not resident:
            return False
        self.forget(min(resident, key=lambda slot: slot.used))
        return True

    def _oldest(self, slots: list[Slot]) -> Slot:
        return min(slots, key=lambda slot: (slot.cached > 0, slot.used))
