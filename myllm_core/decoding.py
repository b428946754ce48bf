"""Running sequences side by side on a backend that turns tokens into logits: for engines that have no scheduler.

Needs numpy, which the plugin with such a backend brings along.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from myllm_core.engine import Sequence, TokenOut
from myllm_core.errors import EngineError, InvalidRequest, MyllmError
from myllm_core.refusals import refusal, too_long
from myllm_core.sampler import Floats, Sampler, log_probabilities
from myllm_core.types import Image

_LEAST_SHARED = 16
"""Tokens that a prompt must have in common with what was read before, for that to be kept instead of read again."""


class Backend(Protocol):
    """A loaded model with a cache for each sequence. Its methods raise ``EngineError`` when the library fails."""

    vocab_size: int

    def open(self, number: int, room: int) -> int:
        """Begin a sequence that will hold ``room`` tokens; how many it may hold, so many or more."""

    def read(self, number: int, tokens: list[int]) -> Floats:
        """Put a piece of a prompt behind a sequence; a new array with the logits of what comes after it."""

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """Put one token behind each of several sequences; a new array of logits for each, in the same order."""

    def cut(self, number: int, length: int) -> bool:
        """Take a sequence back to its first ``length`` tokens. False when that can't be done: it is closed then."""

    def close(self, number: int) -> None:
        """Give up what a sequence holds."""


class Sight(Protocol):
    """What a backend can do beside that reads images. Its methods raise ``EngineError`` and ``InvalidRequest``."""

    def rows(self, image: Image) -> list[int]:
        """The tokens below 0 that stand for an image in a prompt, one for each row."""

    def look(self, number: int, tokens: list[int], image: Image) -> Floats:
        """As ``Backend.read``, of a piece that begins with an image's first row and ends with its last."""


@dataclass(slots=True, eq=False)
class _State:
    """A sequence of the backend: the tokens that it has read."""

    number: int
    room: int
    held: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where the rows of an image stand in a prompt, the first and one behind the last."""

    start: int
    end: int
    image: Image


@dataclass(slots=True, eq=False)
class _Run:
    request: Sequence
    tokens: list[int]
    spans: list[_Span]
    sampler: Sampler
    state: _State | None = None
    cached: int = 0

    @property
    def writing(self) -> bool:
        return len(self.tokens) > len(self.request.tokens)

    @property
    def unread(self) -> list[int]:
        """What the backend has yet to see: of a sequence that writes its last token, and those forced behind it."""
        return self.tokens[0 if self.state is None else len(self.state.held) :]

    def whole(self, length: int) -> int:
        """So many tokens, or fewer where an image would be cut apart."""
        return next((span.start for span in self.spans if span.start < length < span.end), length)


class Decoding:
    """Takes sequences and gives tokens, as a ``TokenEngine`` must.

    Each step writes one token of every sequence whose prompt has been read, all in one pass where the backend can, and
    reads a chunk of the oldest prompt that hasn't. Tokens that a grammar leaves no choice about come with the one in
    front of them, and are read together. What an ended sequence has read is kept as long as there is a place, for a
    prompt that begins the same. An image is read whole, in a step of its own.
    """

    def __init__(
        self, backend: Backend, context_size: int, max_sequences: int, chunk_size: int, sight: Sight | None = None
    ) -> None:
        """Begin with nothing. ``chunk_size`` is the most tokens of a prompt in one step, images apart."""
        self._backend = backend
        self._sight = sight
        self._context_size = context_size
        self._places = max_sequences
        self._chunk = chunk_size
        self._runs: dict[int, _Run] = {}
        self._parked: OrderedDict[int, _State] = OrderedDict()
        self._failed: list[TokenOut] = []
        self._opened = 0

    def add(self, request: Sequence) -> None:
        """Take a sequence on; one that can't be run fails at the next step."""
        if request.id in self._runs:
            raise InvalidRequest(f"a sequence {request.id} is running already")
        try:
            spans = self._spans(request)
        except MyllmError as error:
            self._failed.append(TokenOut(request.id, -1, error=error))
            return
        words = [token for token in request.tokens if token >= 0]
        sampler = Sampler(request.sampling, self._context_size, words)
        self._runs[request.id] = _Run(request, list(request.tokens), spans, sampler)

    def _spans(self, request: Sequence) -> list[_Span]:
        """Where the images of a prompt stand. Raises what is wrong with it."""
        tokens, spans = list(request.tokens), []
        sight, images = self._sight, request.images
        for image, rows in [(image, sight.rows(image)) for image in images] if sight is not None else ():
            places = [place for place, token in enumerate(tokens) if token < 0][: len(rows)]
            if not places or [tokens[place] for place in places] != rows:
                raise InvalidRequest("the prompt's images aren't those that came with it; send it again")
            spans.append(_Span(places[0], places[-1] + 1, image))
            tokens[places[0] : places[-1] + 1] = [0] * (places[-1] + 1 - places[0])
        error = refusal(replace(request, tokens=tokens), self._backend.vocab_size, self._context_size, "context")
        if error is not None:
            raise error
        return spans

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence; unknown ids are ignored."""
        self._failed = [out for out in self._failed if out.sequence_id != sequence_id]
        run = self._runs.pop(sequence_id, None)
        if run is not None and run.state is not None:
            self._parked[run.state.number] = run.state

    def step(self) -> list[TokenOut]:
        """One token more of every sequence that writes, and a chunk of a prompt."""
        writing = [run for run in self._runs.values() if run.writing]
        reading = [run for run in self._runs.values() if not run.writing][:1]
        # A pass of its own pays for a piece that is longer than the passes are wide that it could go along with.
        pieces = [run for run in writing if len(run.unread) > len(writing)]
        outs = self._write([run for run in writing if run not in pieces])
        for run in pieces + reading:
            outs += self._read(run)
        failed, self._failed = self._failed, []
        return failed + outs

    def _write(self, runs: list[_Run]) -> list[TokenOut]:
        for run in [run for run in runs if len(run.tokens) > self._context_size]:
            self._fail(run, too_long(len(run.tokens), self._context_size, "context"))
            runs = [other for other in runs if other is not run]
        if not runs:
            return []
        try:
            rows = self._backend.write({_state(run).number: run.unread[0] for run in runs})
        except EngineError as error:
            for run in runs:
                self._fail(run, error)
            return []
        outs = []
        for run, row in zip(runs, rows, strict=True):
            _state(run).held.append(run.unread[0])
            outs += [] if run.unread else self._choose(run, row)
        return outs

    def _read(self, run: _Run) -> list[TokenOut]:
        try:
            state = run.state or self._claim(run)
            chunk, logits = self._read_piece(run, state)
        except (EngineError, InvalidRequest) as error:
            self._fail(run, error)
            return []
        state.held += chunk
        return [] if run.unread else self._choose(run, logits)

    def _read_piece(self, run: _Run, state: _State) -> tuple[list[int], Floats]:
        """Tokens up to the next image, or the image that comes now."""
        start = len(state.held)
        span = next((span for span in run.spans if span.start >= start), None)
        if self._sight is not None and span is not None and span.start == start:
            chunk = run.tokens[start : span.end]
            return chunk, self._sight.look(state.number, chunk, span.image)
        end = start + self._chunk if span is None else min(start + self._chunk, span.start)
        chunk = run.tokens[start:end]
        return chunk, self._backend.read(state.number, chunk)

    def _claim(self, run: _Run) -> _State:
        """The state that a sequence begins from: what a prompt before it left, or a new one."""
        room = min(self._context_size, len(run.tokens) + run.request.max_tokens)
        run.state = self._continued(run, room)
        if run.state is not None:
            run.cached = len(run.state.held)
            return run.state
        while self._parked and len(self._parked) + len(self._runs) > self._places:
            self._drop(self._parked.popitem(last=False)[1])
        self._opened += 1
        run.state = _State(self._opened, self._backend.open(self._opened, room))
        return run.state

    def _continued(self, run: _Run, room: int) -> _State | None:
        roomy = {number: state for number, state in self._parked.items() if state.room >= room}
        shared = {number: run.whole(_shared(state.held, run.tokens)) for number, state in roomy.items()}
        number = max(shared, key=lambda number: shared[number], default=0)
        if not number or shared[number] < _LEAST_SHARED:
            return None
        state = self._parked.pop(number)
        if shared[number] < len(state.held) and not self._backend.cut(number, shared[number]):
            self._drop(state)
            return None
        del state.held[shared[number] :]
        return state

    def _choose(self, run: _Run, logits: Floats) -> list[TokenOut]:
        """The next token, and those that must follow it; none when the sequence failed."""
        allowed, logprobs = run.request.allowed, run.request.logprobs
        try:
            token = run.sampler.choose(logits, allowed)
        except EngineError as error:
            self._fail(run, error)
            return []
        out = TokenOut(run.request.id, token, run.cached)
        if logprobs is not None:
            out.logprob, out.top = log_probabilities(logits, token, logprobs)
        run.tokens.append(token)
        if allowed is None or logprobs is not None:  # a forced token has no logits, and so no log probability
            return [out]
        return [out, *self._force(run, allowed.forced(token))]

    def _force(self, run: _Run, tokens: list[int]) -> list[TokenOut]:
        written = len(run.tokens) - len(run.request.tokens)
        room = min(run.request.max_tokens - written, self._context_size - len(run.tokens))
        tokens = tokens[: max(0, room)]
        for token in tokens:
            run.sampler.take(token)
        run.tokens += tokens
        return [TokenOut(run.request.id, token, run.cached) for token in tokens]

    def _fail(self, run: _Run, error: MyllmError) -> None:
        """End a sequence; what it has read may be damaged, and isn't kept."""
        self._runs.pop(run.request.id, None)
        if run.state is not None:
            self._drop(run.state)
        self._failed.append(TokenOut(run.request.id, -1, error=error))

    def _drop(self, state: _State) -> None:
        self._backend.close(state.number)

    def close(self) -> None:
        """Drop all sequences and what was kept."""
        for sequence_id in list(self._runs):
            self.cancel(sequence_id)
        while self._parked:
            self._drop(self._parked.popitem()[1])


def _state(run: _Run) -> _State:
    assert run.state is not None, "a sequence that writes has read its prompt"
    return run.state


def _shared(held: list[int], tokens: list[int]) -> int:
    """How many tokens both begin with; the last token of a prompt must be read again, for its logits."""
    limit = min(len(held), len(tokens) - 1)
    return next((place for place in range(limit) if held[place] != tokens[place]), limit)
