"""What the runtime tells those who count or trace: plain values, when something has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from myllm_core.errors import MyllmError, Overloaded
from myllm_core.types import Embeddings, Event, Finish, FinishReason, Progress, Scores, Usage

Kind = Literal["chat", "generate", "embed"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A request to a model that has ended.

    ``began`` is Unix time. ``admitted`` (the model is loaded and it is this request's turn), ``first`` (the first
    token) and ``seconds`` (the end) count from there; None when it never came to that. ``outcome`` is ``refused`` when
    the queue was full. ``usage`` is zero when a request ended without telling it, as a cancelled one does; ``pieces``
    is how many pieces of text were given then too.
    """

    kind: Kind
    model: str
    engine: str
    outcome: FinishReason | Literal["refused"]
    usage: Usage
    began: float
    admitted: float | None
    first: float | None
    seconds: float
    error: MyllmError | None
    pieces: int = 0


class Observer:
    """Told what the runtime did, on its event loop and in the context of the request that caused it.

    Override what matters; be quick, and raise nothing.
    """

    def request_ended(self, ended: Ended) -> None:
        """A chat, a completion or an embedding has ended."""

    def load_ended(self, model: str, engine: str, began: float, seconds: float, error: BaseException | None) -> None:
        """A model was loaded, or failed to load with ``error``. ``began`` is Unix time."""

    def worker_died(self, model: str, error: MyllmError) -> None:
        """The process of a loaded model ended by itself."""


class Watch:
    """Watches one request, and tells the observers once when it ends. A context manager around it."""

    def __init__(self, observers: Sequence[Observer], kind: Kind, model: str, engine: str) -> None:
        self._observers = observers
        self._about: tuple[Kind, str, str] = (kind, model, engine)
        self._began = time.time()
        self._start = time.perf_counter()
        self._admitted: float | None = None
        self._first: float | None = None
        self._pieces = 0
        self._told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, GeneratorExit | asyncio.CancelledError):
            self._tell("cancelled")
        elif error is not None:
            known = error if isinstance(error, MyllmError) else None
            self._tell("refused" if isinstance(error, Overloaded) else "error", error=known)

    def admitted(self) -> None:
        """The model is loaded, and the request's turn has come."""
        self._admitted = time.perf_counter() - self._start

    def see(self, event: Event) -> None:
        """An event goes to whoever asked."""
        if isinstance(event, Finish):
            self._tell(event.reason, event.usage, event.error)
        elif not isinstance(event, Progress):
            self._pieces += 1
            if self._first is None:
                self._first = time.perf_counter() - self._start

    def made(self, what: Embeddings | Scores) -> None:
        """The embeddings, or the scores, are there."""
        self._tell("stop", Usage(prompt_tokens=what.prompt_tokens))

    def _tell(
        self,
        outcome: FinishReason | Literal["refused"],
        usage: Usage = Usage(),  # noqa: B008 - frozen
        error: MyllmError | None = None,
    ) -> None:
        if self._told:
            return
        self._told = True
        seconds = time.perf_counter() - self._start
        began, admitted, first = self._began, self._admitted, self._first
        ended = Ended(*self._about, outcome, usage, began, admitted, first, seconds, error, self._pieces)
        for observer in self._observers:
            observer.request_ended(ended)
