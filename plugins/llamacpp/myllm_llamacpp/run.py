"""What the scheduler keeps of each sequence, and what of it goes into a batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from myllm_core.engine import Sequence
from myllm_core.sampler import Sampler
from myllm_llamacpp.context import Floats, Ints
from myllm_llamacpp.slots import History, Slot
from myllm_llamacpp.speculate import NO_GUESS, Lookup

if TYPE_CHECKING:
    from myllm_llamacpp.vision import Span

_RESERVE = 64
"""Tokens that each sequence is expected to write before another one may be admitted beside it."""


@dataclass(slots=True)
class Stats:
    """Counters since loading; seconds of ``step`` include those of ``decode``."""

    steps: int = 0
    decode_seconds: float = 0.0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    forced_tokens: int = 0
    forgotten_tokens: int = 0
    evictions: int = 0
    preemptions: int = 0

    @property
    def overhead(self) -> float:
        """The share of a step's time that isn't llama.cpp's forward pass."""
        return 1 - self.decode_seconds / self.step_seconds if self.step_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The counters and the overhead as JSON values."""
        return asdict(self) | {"overhead": self.overhead}


@dataclass(slots=True, eq=False)
class Run:
    """A sequence at work. What isn't cached of its history is still to be read: a prompt, or its newest token."""

    request: Sequence
    history: History
    sampler: Sampler
    lookup: Lookup | None = None
    slot: Slot | None = None
    cached_tokens: int = 0
    written: int = 0
    forgotten: int = 0

    @property
    def held(self) -> Slot:
        """Its slot; one that waits has none."""
        assert self.slot is not None, "only running sequences are planned"
        return self.slot

    @property
    def pending(self) -> int:
        """Tokens still to be read before the next one can be chosen."""
        return self.history.length - (self.slot.cached if self.slot else 0)

    @property
    def image(self) -> Span | None:
        """The next image that isn't all cached."""
        cached = self.held.cached
        return next((span for span in self.history.spans if span.end > cached), None)

    @property
    def text(self) -> int:
        """Pending tokens before the next image; 0 when that comes first."""
        image = self.image if self.history.spans else None
        return self.pending if image is None else max(0, image.start - self.held.cached)

    @property
    def room(self) -> int:
        """Cache cells that it needs soon."""
        return self.history.length + max(0, min(self.request.max_tokens - self.written, _RESERVE))


@dataclass(slots=True, eq=False)
class Part:
    """What a run has in the batch: so many of its pending tokens, and guesses of what comes after them.

    Tokens that stand for rows of an image come with all ``rows`` of that image, and are alone in a batch.
    """

    run: Run
    share: int
    guess: Ints = field(default_factory=lambda: NO_GUESS)
    rows: Floats | None = None


Plan = list[Part]
