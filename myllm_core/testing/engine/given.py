"""What the tests of an engine start from: the engine and its model, questions, and replies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from myllm_core.chat.pipeline import Pipeline, preparer_of
from myllm_core.engine import Engine, TokenEngine
from myllm_core.models.manifest import Manifest, Model, ModelFile
from myllm_core.runtime.choose import load_options
from myllm_core.types import (
    ChatRequest,
    Event,
    Finish,
    Message,
    PositionLogprobs,
    Progress,
    ReasoningDelta,
    Request,
    Sampling,
    TextDelta,
    ToolCallDelta,
)

EVENTS = (TextDelta, ReasoningDelta, ToolCallDelta, Progress, Finish)
GREEDY = Sampling(temperature=0.0, seed=1)
FREE = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=7)
SHORT = 8
"""Tokens of a reply that a test asks for."""
_CLOSE_CALL = 0.5
"""Two tokens whose log probabilities are nearer than this may change places when a backend sums in another order."""


@dataclass(frozen=True, slots=True)
class EngineCase:
    """An engine and an installed model to test it with.

    Choose load options with a context of a few hundred tokens, else the tests that fill it are left out. ``patience``
    is how many seconds a reply may take.
    """

    engine: type[Engine]
    model: Model
    load_options: Mapping[str, Any] = field(default_factory=dict)
    patience: float = 60.0

    def options(self) -> dict[str, Any]:
        """Every load option, as the runtime would give them."""
        return load_options(self.engine, self.model.manifest.load_options, self.load_options)

    def load(self) -> Engine:
        """The engine, loaded once more; the caller closes it."""
        return self.engine.load(self.model, self.options(), lambda fraction: None)


def model_of(*paths: Path, format: str, name: str = "contract:latest", **manifest: Any) -> Model:
    """A model of files that lie anywhere; ``manifest`` is more of its manifest."""
    files = tuple(ModelFile(str(path.resolve()), path.stat().st_size, "0" * 64) for path in paths)
    return Model(Manifest(name, format, files, **manifest), paths[0].parent if paths else Path())


@dataclass
class Reply:
    """All events of a request."""

    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def written(self) -> str:
        """Reasoning and answer."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta | ReasoningDelta))

    @property
    def positions(self) -> list[PositionLogprobs]:
        """Log probabilities of the answer, where they were asked for."""
        return [position for event in self.events if isinstance(event, TextDelta) for position in event.logprobs]

    @property
    def finish(self) -> Finish:
        """The last event, when the events are as they should be; fails the test otherwise."""
        strange = [event for event in self.events if not isinstance(event, EVENTS)]
        assert not strange, f"{strange[0]!r} is no event"
        ends = [place for place, event in enumerate(self.events) if isinstance(event, Finish)]
        assert ends == [len(self.events) - 1], "a reply has exactly one Finish, and it comes last"
        last = self.events[-1]
        assert isinstance(last, Finish)
        assert (last.reason == "error") == (last.error is not None), "a Finish has an error exactly when that is why"
        return last

    def ended_well(self) -> Finish:
        """The last event, when nothing went wrong."""
        finish = self.finish
        if finish.reason not in ("stop", "length"):  # an assert would show all of the Finish behind the reason
            pytest.fail(f"the reply ended with {finish.reason}: {finish.error}")
        return finish


def question(text: str = "What is the capital of France?", **more: Any) -> ChatRequest:
    """A conversation of one message; greedy and short when nothing else is said."""
    return ChatRequest((Message("user", text),), **{"sampling": GREEDY, "max_tokens": SHORT, **more})


def comparable(engine: Engine, **more: Any) -> ChatRequest:
    """A question whose replies ``alike`` can compare."""
    return question(logprobs=2 if "logprobs" in engine.facts.capabilities else None, **more)


def alike(one: Reply, other: Reply) -> bool:
    """Whether two greedy replies are the same, but for a choice that rounding may decide."""
    if one.written == other.written:
        return True
    for pair in zip(one.positions, other.positions, strict=False):
        if pair[0].chosen.bytes != pair[1].chosen.bytes:
            return all(len(p.top) > 1 and p.top[0].logprob - p.top[1].logprob < _CLOSE_CALL for p in pair)
    return False


class Pipe:
    """Runs requests on a TokenEngine side by side, as a worker does, and never waits without end."""

    _ids = count(1)  # a worker never uses an id again

    def __init__(self, engine: TokenEngine, patience: float) -> None:
        self._patience = patience
        self._pipeline = Pipeline(engine)
        self._preparer = preparer_of(engine)
        self._replies: dict[int, Reply] = {}

    def start(self, request: Request) -> int:
        """Put a request in line; its number."""
        number = next(self._ids)
        self._pipeline.start(number, request, self._preparer.prepare(request))
        self._replies[number] = Reply()
        return number

    def _step(self) -> None:
        for number, event in self._pipeline.step():
            self._replies[number].events.append(event)

    def cancel_midway(self, number: int) -> Reply:
        """Stop a request when it has said something, or has ended; what came of it."""
        reply, deadline = self._replies[number], time.monotonic() + self._patience
        while not reply.events:
            assert time.monotonic() < deadline, f"not one token in {self._patience:g} s"
            self._step()
        reply.events += self._pipeline.cancel(number)
        return reply

    def cancel_after(self, number: int, steps: int) -> Reply:
        """Stop a request after so many steps, whether it has said something or not; what came of it."""
        for _ in range(steps):
            self._step()
        self._replies[number].events += self._pipeline.cancel(number)
        return self._replies[number]

    def finish(self) -> list[Reply]:
        """Go on until all have ended."""
        deadline = time.monotonic() + self._patience
        try:
            while self._pipeline.busy:
                assert time.monotonic() < deadline, f"the replies didn't end in {self._patience:g} s"
                self._step()
        finally:
            for number in self._replies:
                self._pipeline.cancel(number)
        return list(self._replies.values())


def ask(engine: Engine, request: Request, patience: float) -> Reply:
    """The whole reply to a request that nobody else's runs beside."""
    if isinstance(engine, TokenEngine):
        pipe = Pipe(engine, patience)
        pipe.start(request)
        return pipe.finish()[0]
    events = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
    return Reply(list(_bounded(events, patience)))


def _bounded(events: Iterable[Event], patience: float) -> Iterator[Event]:
    deadline = time.monotonic() + patience
    for event in events:
        yield event
        assert time.monotonic() < deadline, f"the reply didn't end in {patience:g} s"


def ask_together(engine: TokenEngine, requests: Sequence[Request], patience: float) -> list[Reply]:
    """The replies to requests that run at the same time."""
    pipe = Pipe(engine, patience)
    for request in requests:
        pipe.start(request)
    return pipe.finish()


def cancel_midway(engine: Engine, request: ChatRequest, patience: float) -> None:
    """Begin a reply and go away after its first words."""
    if isinstance(engine, TokenEngine):
        pipe = Pipe(engine, patience)
        reply = pipe.cancel_midway(pipe.start(request))
        assert reply.finish.reason in ("cancelled", "stop", "length")
        return
    events: Any = engine.chat(request)
    next(events, None)
    events.close()


@dataclass
class Loaded:
    """A loaded engine, and the fractions that it told while it loaded."""

    engine: Engine
    progress: list[float]
    failures: int


class EngineFixtures:
    """The fixtures of all tests of an engine."""

    @pytest.fixture
    def case(self) -> EngineCase:
        """The engine and its model: what an author gives."""
        pytest.fail("give the fixture case: EngineCase(MyEngine, model)")

    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls) -> Iterator[list[Any]]:
        """What the tests of one class share; loaded engines are closed at the end."""
        things: list[Any] = []
        yield things
        for thing in things:
            if isinstance(thing, Loaded):
                thing.engine.close()

    @pytest.fixture
    def loaded(self, case: EngineCase, kept: list[Any], request: pytest.FixtureRequest) -> Loaded:
        """The engine, loaded once for all tests of the class, and again after one that failed."""
        failures = request.session.testsfailed
        found = next((thing for thing in kept if isinstance(thing, Loaded)), None)
        if found is not None and found.failures == failures:
            return found
        if found is not None:
            kept.remove(found)
            found.engine.close()
        told: list[float] = []
        loaded = Loaded(case.engine.load(case.model, case.options(), told.append), told, failures)
        kept.append(loaded)
        return loaded

    @pytest.fixture
    def engine(self, loaded: Loaded) -> Engine:
        """The loaded engine."""
        return loaded.engine

    @pytest.fixture
    def talker(self, engine: Engine) -> Engine:
        """The loaded engine, when it chats."""
        if "chat" not in engine.facts.capabilities:
            pytest.skip("the model doesn't chat")
        return engine

    @pytest.fixture
    def tokens(self, talker: Engine) -> TokenEngine:
        """The loaded engine, when it is a TokenEngine that chats."""
        if not isinstance(talker, TokenEngine):
            pytest.skip("only a TokenEngine takes tokens")
        return talker


def needs(engine: Engine, *options: str) -> None:
    """Skip the test when the engine doesn't honour these sampling options."""
    missing = sorted(set(options) - set(engine.sampling))
    if missing:
        pytest.skip(f"the engine has no option {', '.join(missing)}")
