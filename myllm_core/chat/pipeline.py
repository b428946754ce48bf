"""Runs requests on a TokenEngine: prompts in, events out, many at a time.

Everything that must be the same on every engine happens here: when a reply ends, what of it is text, reasoning or
a held-back part of a stop string, and what is counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from myllm_core.chat.prompt import Prepared, Preparer
from myllm_core.chat.text import ReasoningSplitter, StopMatcher, utf8_decoder
from myllm_core.chat.tools.parser import Piece
from myllm_core.engine import Sequence, TokenEngine, TokenOut
from myllm_core.errors import InvalidRequest, MyllmError
from myllm_core.runtime.failures import as_error
from myllm_core.types import (
    Event,
    Finish,
    FinishReason,
    PositionLogprobs,
    Progress,
    ReasoningDelta,
    Request,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)

__all__ = ["Pipeline", "Prepared", "Preparer", "all_pieces", "preparer_of", "run_alone", "text_of"]

_ENDLESS = 10
"""Contexts that a reply may be long where the engine goes on past one and nobody set a limit."""


class _Reply:
    """The state of one running request."""

    def __init__(self, rid: int, request: Request, prepared: Prepared, limit: int) -> None:
        self.rid = rid
        self.request = request
        self.prepared = prepared
        self.limit = limit
        self.tokens = 0
        self.cached = self.forgotten = 0
        self.arrived = time.perf_counter()
        self.admitted = self.first = 0.0
        self._decoder = utf8_decoder()
        self._reasoning = ReasoningSplitter(prepared.reasoning, prepared.inside_reasoning)
        self._calls = prepared.calls
        self._stops = StopMatcher(prepared.stop)
        self._logprobs: list[tuple[int, PositionLogprobs]] = []
        self._decoded = self._unsaid = 0
        self.constraint = prepared.constraint
        self.endless = request.ignore_eos and prepared.constraint is None
        if self.constraint is not None:
            self.constraint.active = not self._reasoning.inside

    def feed(self, piece: bytes, logprobs: PositionLogprobs | None) -> list[Event]:
        """Events that a token's bytes make certain."""
        start, was_inside = self._decoded, self._reasoning.inside
        text = self._decoder.decode(piece)
        reasoning, answer = self._reasoning.feed(text)
        self._decoded += len(answer)
        if self.constraint is not None and was_inside and not self._reasoning.inside:
            self.constraint.active = True  # from the next token on: the answer begins
        if logprobs is not None and not reasoning:
            self._logprobs.append((start, logprobs))
        return self._events(reasoning, answer)

    def flush(self) -> list[Event]:
        """Events for what was held back, at the end."""
        reasoning, answer = self._reasoning.feed(self._decoder.decode(b"", True))
        more_reasoning, more_answer = self._reasoning.flush()
        self._decoded += len(answer) + len(more_answer)
        return self._events(reasoning + more_reasoning, answer + more_answer, last=True)

    @property
    def done(self) -> bool:
        """Whether nothing more is wanted: a stop string came, or the one call that may."""
        return self._stops.found is not None or (self._calls is not None and self._calls.done)

    @property
    def called(self) -> bool:
        """Whether the model called a tool."""
        return self._calls is not None and self._calls.count > 0

    @property
    def stopped_by(self) -> str | None:
        """The stop string that was found, if one was."""
        return self._stops.found

    def _events(self, reasoning: str, answer: str, last: bool = False) -> list[Event]:
        events: list[Event] = [ReasoningDelta(reasoning)] if reasoning else []
        pieces: list[Piece] = [answer] if answer else []
        if self._calls is not None:
            pieces = self._calls.feed(answer) + (self._calls.flush() if last else [])
        for piece in pieces:
            if isinstance(piece, str):
                self._unsaid += len(piece)
                self._say(events, self._stops.feed(piece))
            elif self._stops.found is None:
                self._say(events, self._stops.flush())
                events.append(piece)
        if last and self._stops.found is None:
            self._say(events, self._stops.flush())
        return self._with_logprobs(events) if self._logprobs else events

    def _say(self, events: list[Event], text: str) -> None:
        if text:
            self._unsaid -= len(text)
            events.append(TextDelta(text))

    def _with_logprobs(self, events: list[Event]) -> list[Event]:
        """The events with the log probabilities of what is certain: the last text has them, and calls have none."""
        told = (self._decoded if self._calls is None else self._calls.certain) - self._unsaid
        texts = [index for index, event in enumerate(events) if isinstance(event, TextDelta)]
        if texts or self._calls is not None:
            ready = tuple(item for start, item in self._logprobs if start < told)
            self._logprobs = [pair for pair in self._logprobs if pair[0] >= told]
            for index in texts[-1:]:
                events[index] = TextDelta(cast(TextDelta, events[index]).text, ready)
        return events

    def finish(self, reason: FinishReason, error: MyllmError | None = None) -> Finish:
        """The last event."""
        if reason == "stop" and self.called:
            reason = "tool_calls"
        now = time.perf_counter()
        admitted = self.admitted or now
        first = self.first or now
        return Finish(
            reason,
            Usage(len(self.prepared.tokens), self.tokens, self.cached),
            Timings(admitted - self.arrived, first - admitted, now - first),
            replace(self.prepared.context, shifted_tokens=self.forgotten),
            self.stopped_by if self.stopped_by in self.request.stop else None,
            self.request.sampling.seed,
            error=error,
        )


class Pipeline:
    """Keeps up to ``max_sequences`` requests running on an engine, and the others in line, first come first served."""

    def __init__(self, engine: TokenEngine) -> None:
        self._engine = engine
        self._facts = engine.facts
        self._waiting: deque[_Reply] = deque()
        self._running: dict[int, _Reply] = {}
        self._pieces: dict[int, bytes] = {}

    @property
    def busy(self) -> bool:
        """Whether there is anything to step for."""
        return bool(self._running or self._waiting)

    def start(self, rid: int, request: Request, prepared: Prepared) -> None:
        """Put a request in line; ``rid`` is the caller's id for it."""
        size = self._facts.context_size
        room = _ENDLESS * size if self._facts.endless else size - len(prepared.tokens)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._waiting.append(_Reply(rid, request, prepared, limit))

    def cancel(self, rid: int) -> list[Event]:
        """Stop a request at once; its last events, none for an unknown id."""
        reply = self._running.get(rid) or next((r for r in self._waiting if r.rid == rid), None)
        if reply is None:
            return []
        events = [*reply.flush(), reply.finish("cancelled")]
        self._drop(reply)
        return events

    def step(self) -> list[tuple[int, Event]]:
        """One forward pass for all that run. An engine that raises ends the requests that run, not the pipeline."""
        events = self._admit()
        try:
            outs = self._engine.step() if self._running else []
        except Exception as error:  # noqa: BLE001 - a stranger's engine may raise anything
            return events + self._fail_all(error)
        for out in outs:
            reply = self._running.get(out.sequence_id)
            if reply is not None:
                reply.forgotten += out.forgotten
                events += [(reply.rid, event) for event in self._advance(reply, out)]
        return events

    def _admit(self) -> list[tuple[int, Event]]:
        """Let those in whose turn it is; the last events of those that the engine doesn't take."""
        refused: list[tuple[int, Event]] = []
        while self._waiting and len(self._running) < self._engine.max_sequences:
            reply = self._waiting.popleft()
            reply.admitted = time.perf_counter()
            self._running[reply.rid] = reply
            request = reply.request
            prompt, limit = reply.prepared.tokens, reply.limit
            images = reply.prepared.images
            sequence = Sequence(reply.rid, prompt, request.sampling, limit, request.logprobs, reply.constraint, images)
            try:
                self._engine.add(sequence)
            except Exception as error:  # noqa: BLE001 - a stranger's engine may raise anything
                refused += [(reply.rid, event) for event in self._end(reply, "error", error)]
        return refused

    def _advance(self, reply: _Reply, out: TokenOut) -> list[Event]:
        if out.error is not None:
            return self._end(reply, "error", out.error)
        if reply.first:
            return self._read(reply, out)
        reply.first, reply.cached = time.perf_counter(), out.cached_tokens
        usage = Usage(len(reply.prepared.tokens), 0, reply.cached)
        return [Progress("prompt", 1.0, usage=usage), *self._read(reply, out)]

    def _read(self, reply: _Reply, out: TokenOut) -> list[Event]:
        if out.token in self._facts.eos_tokens and not reply.endless:
            reply.tokens += 1
            return self._end(reply, "stop")
        reply.tokens += 1
        if reply.constraint is not None:
            try:
                reply.constraint.accept(out.token)
            except MyllmError as error:
                return self._end(reply, "error", error)
        logprobs = None if reply.request.logprobs is None else self._position(out)
        marker = reply.prepared.markers.get(out.token)
        events = reply.feed(self._piece(out.token) if marker is None else marker, logprobs)
        if reply.done or (reply.constraint is not None and reply.constraint.complete):
            return events + self._end(reply, "stop")
        if reply.tokens >= reply.limit:
            return events + self._end(reply, "length")
        return events

    def _end(self, reply: _Reply, reason: FinishReason, cause: Exception | None = None) -> list[Event]:
        error = None
        if cause is not None:
            error = as_error(cause, "answering")
        self._drop(reply)
        return [*reply.flush(), reply.finish(reason, error)]

    def _drop(self, reply: _Reply) -> None:
        if self._running.pop(reply.rid, None) is not None:
            self._engine.cancel(reply.rid)
        else:
            self._waiting.remove(reply)

    def _fail_all(self, error: Exception) -> list[tuple[int, Event]]:
        failed = list(self._running.values())
        return [(reply.rid, event) for reply in failed for event in self._end(reply, "error", error)]

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._engine.piece(token)
        return piece

    def _position(self, out: TokenOut) -> PositionLogprobs:
        top = tuple(self._logprob(token, value) for token, value in out.top)
        return PositionLogprobs(self._logprob(out.token, out.logprob), top)

    def _logprob(self, token: int, value: float) -> TokenLogprob:
        piece = self._piece(token)
        return TokenLogprob(piece.decode("utf-8", "replace"), piece, value)


def all_pieces(engine: TokenEngine) -> list[bytes]:
    """The bytes of every token of the vocabulary."""
    return [engine.piece(token) for token in range(engine.facts.vocab_size)]


def text_of(engine: TokenEngine, tokens: list[int]) -> str:
    """The text of tokens; control tokens have none. Raises ``InvalidRequest`` for one that the model doesn't have."""
    size = engine.facts.vocab_size
    for index, token in enumerate(tokens):
        if not 0 <= token < size:
            raise InvalidRequest(f"token {index} is {token}; this model's are 0 to {size - 1}")
    return b"".join(engine.piece(token) for token in tokens).decode("utf-8", "replace")


def preparer_of(engine: TokenEngine) -> Preparer:
    """What makes prompts for an engine that nobody else uses, on this thread."""
    return Preparer(engine.facts, engine.tokenize, lambda: all_pieces(engine), image_tokens=engine.image_tokens)


def run_alone(engine: TokenEngine, request: Request) -> Iterator[Event]:
    """Run one request on an engine that nobody else uses, on this thread."""
    pipeline = Pipeline(engine)
    prepared = preparer_of(engine).prepare(request)
    pipeline.start(0, request, prepared)
    try:
        while pipeline.busy:
            for _, event in pipeline.step():
                yield event
    finally:
        pipeline.cancel(0)
