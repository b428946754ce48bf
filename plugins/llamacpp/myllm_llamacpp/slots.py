"""Slots: the sequences that llama.cpp's cache can hold, running or resident, and which prefix of one helps another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from myllm_llamacpp.context import Context, Ints
from myllm_llamacpp.disk import Disk, Saved
from myllm_llamacpp.states import State, States

if TYPE_CHECKING:
    from myllm_llamacpp.vision import Span

_WORTH_KEEPING = 64
"""Tokens that a copy must save: less is read anew as quickly."""
_ALL = 2**31


class History:
    """The tokens of a sequence, prompt and reply: an array that grows. ``spans`` are the rows of images among them."""

    def __init__(self, tokens: Ints | None = None, spans: tuple[Span, ...] = ()) -> None:
        self.spans = spans
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

    @property
    def tokens(self) -> Ints:
        """A view of all tokens."""
        return self._data[: self.length]

    def position(self, index: int) -> int:
        """Where the model has a token that is no image's row: those of an image may take fewer positions than rows."""
        return index - sum(span.rows - span.piece.positions for span in self.spans if span.end <= index)

    def image_at(self, index: int) -> Span | None:
        """The image that would be cut in two before this token."""
        return next((span for span in self.spans if span.start < index < span.end), None)

    def common(self, tokens: Ints) -> int:
        """How many of the first tokens are the same."""
        most = min(self.length, len(tokens))
        differs = self._data[:most] != tokens[:most]
        first = int(differs.argmax()) if most else 0
        return first if most and differs[first] else most


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence id of the cache: ``cached`` tokens of ``history`` are in it. ``busy`` while a request uses it.

    ``used`` is when the last one was done with it (seconds, wall clock). The first ``shared`` of the cached tokens lie
    in cells that were another running slot's when this one was claimed. What comes after the first ``exact`` has seen
    tokens that were shifted out since, so it is of use to the running request only.
    """

    id: int
    history: History = field(default_factory=History)
    cached: int = 0
    shared: int = 0
    exact: int = _ALL
    busy: bool = False
    used: float = 0.0
    stays: bool = False

    @property
    def tokens(self) -> Ints:
        """The tokens that are in the cache as anyone would read them: a view."""
        return self.history.slice(0, min(self.cached, self.exact))


class Slots:
    """All slots of a context, and the rules of sharing and giving up what they hold.

    Where a sequence can't be cut short (recurrent and hybrid models), a slot helps only when the new prompt goes on
    exactly where it ends. Where layers look through a sliding window, the tokens before the cut must still be there.
    What is given up goes to ``states`` and comes back when a prompt begins like it, as what is on disk does.
    With ``whole_images`` no prefix ends within an image.
    """

    whole_images = False

    def __init__(
        self, context: Context, states: States, disk: Disk | None, *, can_cut: bool, shared: bool, window: int
    ) -> None:
        self.states = states
        self.every_prefix = can_cut and window == 0
        self._context = context
        self._disk = disk
        self._can_cut = can_cut
        self._shared = shared
        self._untidy = False
        self._can_copy = shared and self.every_prefix
        self._window = window
        self._slots = [Slot(number) for number in range(context.sequences)]

    def claim(self, history: History) -> Slot:
        """Take a free slot for a prompt, with as much of it cached as some slot can give; never the last token.

        There must be a free slot.
        """
        alone = self._shared and not any(slot.busy for slot in self._slots)
        if alone:
            self._put_in_order(history)
        restored = self._restore(history, self._source(history)[1] + _WORTH_KEEPING)
        if restored is not None:
            return restored
        free = self._free()
        source, prefix = self._source(history)
        if source is None or prefix == 0:
            return self._take(self._oldest(free), history, 0)
        others = [slot for slot in free if slot is not source]
        if alone and len(self.resident()) == 1:
            return self._take(source, history, prefix)
        if not source.busy and (2 * prefix >= source.cached or not others or not self._can_copy):
            return self._take(source, history, prefix)
        target = self._oldest(others)
        self.give_up(target)
        self._context.copy(source.id, target.id, history.position(prefix))
        target.cached = prefix
        target.shared = prefix if source.busy else 0
        return self._take(target, history, prefix)

    def _put_in_order(self, history: History) -> None:
        """Nobody runs: see that the cells of a prompt's sequence will lie in the order of its tokens, if they can.

        Attention adds up in the order of the cells, so a sequence whose cells fill the holes of others rounds
        otherwise. One that is alone has none to fill: the others move out, and it comes back in order itself.
        """
        resident = self.resident()
        source, prefix = self._source(history)
        if len(resident) == 1 and source is not None:
            return
        if not all(self._held(slot) or self.states.takes(self.size(slot)) for slot in resident):
            return
        for slot in resident:
            self.give_up(slot)
        restored = self._restore(history, prefix) if prefix else None
        if restored is not None:
            restored.busy = False

    def shareable(self, history: History) -> int:
        """How many of a prompt's first tokens a running slot holds in cells that can be shared."""
        if not self._can_copy:
            return 0
        return max((self.usable(slot.tokens, history) for slot in self._slots if slot.busy), default=0)

    def resident(self) -> list[Slot]:
        """Slots that hold something and aren't in use, the one that was used last first."""
        found = [slot for slot in self._slots if not slot.busy and slot.cached]
        return sorted(found, key=lambda slot: -slot.used)

    def _free(self) -> list[Slot]:
        return [slot for slot in self._slots if not slot.busy]

    def _source(self, history: History) -> tuple[Slot | None, int]:
        """The slot whose prefix is to be used, and how long that is."""
        best, longest = None, 0
        for slot in self._slots:
            if slot.busy and not self._can_copy:
                continue
            prefix = self.usable(slot.tokens, history)
            if prefix > longest or (best is not None and prefix == longest and best.busy and not slot.busy):
                best, longest = slot, prefix
        return best, longest

    def usable(self, tokens: Ints, history: History, first: int = 0) -> int:
        """How many of the cached ``tokens``, there from position ``first`` on, a prompt can begin with."""
        prefix = min(history.common(tokens), history.length - 1)
        cut = history.image_at(prefix) if self.whole_images else None
        if cut is not None:
            prefix = cut.start
        if prefix < len(tokens) and (not self._can_cut or first > max(0, history.position(prefix) - self._window)):
            return 0
        return max(0, prefix)

    def _restore(self, history: History, least: int) -> Slot | None:
        """Take a slot with a copy that spares at least so many tokens."""
        state = self._copy_for(history, least)
        if state is None:
            return None
        target = self._oldest(self._free())
        self.give_up(target)
        while not self._context.restore(target.id, state.data):
            if not self.evict():
                return None
        prefix = self.usable(state.tokens, history, state.first)
        state.used = time.time()
        if 2 * prefix >= len(state.tokens):
            self.states.drop(lambda other: other is state)
        target.history, target.cached = History(state.tokens), len(state.tokens)
        return self._take(target, history, prefix)

    def _copy_for(self, history: History, least: int) -> State | None:
        while True:
            best: State | Saved | None = None
            longest = least - 1
            for other in (*self.states, *(self._disk or ())):
                prefix = self.usable(other.tokens, history, other.first)
                if prefix > longest:
                    best, longest = other, prefix
            if not isinstance(best, Saved):
                return best
            state = self._disk.read(best) if self._disk else None
            if state is not None:
                return state

    def _take(self, slot: Slot, history: History, prefix: int) -> Slot:
        if 2 * prefix < slot.cached:
            self._keep(slot)
        position = history.position(prefix)
        if prefix < slot.cached and not (prefix and self._context.remove(slot.id, position)):
            self.forget(slot)
            prefix = 0
        if prefix and self._window and not 0 <= self._context.first(slot.id) <= max(0, position - self._window):
            self.forget(slot)
            prefix = 0
        slot.history, slot.cached, slot.shared, slot.busy = history, prefix, min(slot.shared, prefix), True
        return slot

    def extend(self, slot: Slot, right: int) -> None:
        """Of guessed tokens that were put after what is cached, so many were right: take the others out."""
        slot.cached += right
        self._context.remove(slot.id, slot.history.position(slot.cached))

    def shift(self, slot: Slot, keep: int, end: int) -> History:
        """Forget a running slot's tokens from ``keep`` to before ``end``; the history that is left.

        Cells that another running slot shares can't be moved: then what comes after ``keep`` has to be read anew.
        """
        sharing = [other for other in self._slots if other is not slot and _common(other, slot) > end]
        if slot.cached <= end or any(other.busy for other in sharing):
            self._cut(slot, keep)
        else:
            for other in sharing:
                self.give_up(other)
            self._context.shift(slot.id, keep, end)
            slot.cached -= end - keep
            slot.exact = keep
        slot.shared = min(slot.shared, keep)
        spans = slot.history.spans
        kept = [span for span in spans if span.end <= keep]
        kept += [replace(span, start=span.start - (end - keep)) for span in spans if span.start >= end]
        left = np.concatenate([slot.history.slice(0, keep), slot.history.tokens[end:]])
        slot.history = History(left, tuple(kept))
        return slot.history

    def _cut(self, slot: Slot, length: int) -> None:
        """Leave only the first tokens in the cache."""
        if slot.cached > length:
            self._context.remove(slot.id, slot.history.position(length))
            slot.cached = length
        slot.exact = _ALL

    def release(self, slot: Slot) -> None:
        """A request is done with the slot; what it holds stays, for a prompt that begins the same."""
        self._cut(slot, min(slot.cached, slot.exact))
        slot.busy = slot.stays = False
        slot.used = time.time()
        self._untidy = self._shared

    def forget(self, slot: Slot) -> None:
        """Empty a slot's cache."""
        self._context.remove(slot.id)
        slot.history, slot.cached, slot.shared, slot.exact = History(), 0, 0, _ALL

    def give_up(self, slot: Slot) -> None:
        """Empty a slot's cache, and keep a copy where there is memory for it."""
        self._cut(slot, min(slot.cached, slot.exact))
        self._keep(slot)
        self.forget(slot)

    def evict(self) -> bool:
        """Empty the resident slot that was used longest ago. False: there is none."""
        resident = self.resident()
        if not resident:
            return False
        self.give_up(resident[-1])
        return True

    def tidy(self, most: int) -> None:
        """Move what one resident slot holds into a copy of at most so many bytes, where there is memory for it.

        In a cache that all share, running sequences look through the cells of those that only stay there.
        """
        if not self._untidy:
            return
        for slot in reversed(self.resident()):
            if slot.cached < _WORTH_KEEPING or slot.stays:
                continue
            size = self.size(slot)
            if self._held(slot) or (size <= most and self.states.takes(size)):
                self.give_up(slot)
            else:
                slot.stays = True
            return
        self._untidy = False

    def _keep(self, slot: Slot) -> None:
        if slot.cached < _WORTH_KEEPING or self._held(slot):
            return
        state = self.copy(slot) if self.states.takes(self.size(slot)) else None
        if state is None:
            return
        if self.every_prefix:
            self.states.drop(lambda other: np.array_equal(slot.tokens[: len(other.tokens)], other.tokens))
        self.states.put(state)

    def _held(self, slot: Slot) -> bool:
        """Whether what the slot holds can be had from elsewhere."""
        if self.every_prefix:
            others = [other.tokens[: slot.cached] for other in (*self._slots, *self.states) if other is not slot]
        else:
            others = [state.tokens for state in self.states]
        return any(np.array_equal(tokens, slot.tokens) for tokens in others)

    def size(self, slot: Slot) -> int:
        """Bytes of a copy."""
        return self._context.state_size(slot.id)

    def copy(self, slot: Slot) -> State | None:
        """A copy of all that a slot holds; None when llama.cpp can't make one."""
        data = self._context.state(slot.id)
        return None if data is None else State(slot.tokens.copy(), self._context.first(slot.id), data, slot.used)

    def _oldest(self, slots: list[Slot]) -> Slot:
        return min(slots, key=lambda slot: (slot.cached > 0, slot.used))


def _common(slot: Slot, other: Slot) -> int:
    """How many tokens two slots may share cells for."""
    return History(slot.tokens).common(other.tokens) if slot.cached else 0
