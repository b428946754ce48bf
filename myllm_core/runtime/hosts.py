"""What runs a loaded engine: commands in, events out, the same in a worker process and in a thread.

Commands are lists: ``["run", id, request]``, ``["embed", id, inputs]``, ``["rerank", id, documents, query]``,
``["cancel", id]``, ``["ping", id]``, ``["close"]``, and for engines of tokens ``["prompt", id, request]``,
``["tokenize", id, text, special]`` and ``["detokenize", id, tokens]``.
``emit`` takes a batch of ``[id, item…]`` lists; one batch per step for all sequences.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, TypeVar

from myllm_core.chat.pipeline import Pipeline, Preparer, all_pieces, text_of
from myllm_core.chat.text import StopMatcher
from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import EngineError
from myllm_core.runtime.embed_job import EmbedJob
from myllm_core.runtime.failures import as_error
from myllm_core.runtime.wire import pack_event, unpack_request
from myllm_core.types import (
    ChatRequest,
    Event,
    Finish,
    Image,
    Progress,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCallDelta,
)

T = TypeVar("T")
Emit = Callable[[list[list[Any]]], None]
_EVENTS = (TextDelta, ReasoningDelta, ToolCallDelta, Progress, Finish)
_MAX_REPLY = 64 * 2**20
_POLL = 0.01
_QUIET = 0.5
"""Seconds without a command after which the engine may do what it put off."""


def _embed_all(engine: Engine, job: EmbedJob, cancelled: threading.Event) -> list[Any]:
    answer = None
    while answer is None:
        answer = ["x", EngineError("cancelled").to_dict()] if cancelled.is_set() else job.advance(engine)
    return answer


class TokenHost:
    """Runs a TokenEngine on the thread that calls ``run``; templates are rendered on a second thread.

    A template that takes its time slows nobody else's tokens: only tokenizing comes back to the engine's thread, and
    that only where the engine wants it there. Else prompts get ready while a step runs, all that have come meanwhile.
    """

    def __init__(self, engine: TokenEngine, emit: Emit, names: str) -> None:
        self._engine = engine
        self._emit = emit
        self._inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._pipeline = Pipeline(engine)
        anywhere = engine.tokenizes_anywhere
        tokenize = engine.tokenize if anywhere else self._tokenize_there
        pieces = (lambda: all_pieces(engine)) if anywhere else self._pieces_there
        self._preparer = Preparer(engine.facts, tokenize, pieces, names, self._image_tokens_there)
        self._pool = ThreadPoolExecutor(1, "prepare")
        self._at_work = threading.Lock()
        self._preparing: set[int] = set()
        self._embedding: deque[EmbedJob] = deque()
        self._embed_after = 0.0
        self._closing = False
        self._thread: int | None = None

    def post(self, command: list[Any]) -> None:
        """Hand a command over, from any thread. Prompts are made ready at once, whatever the engine does meanwhile."""
        match command:
            case ["run", rid, body]:
                self._preparing.add(rid)
                self._prepare_soon(self._prepare, rid, body)
            case ["prompt" | "tokenize" | "detokenize" as what, rid, *given]:
                self._prepare_soon(self._look_up, rid, what, given)
            case _:
                self._inbox.put(command)

    def _prepare_soon(self, function: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # too late: it is being closed
            self._pool.submit(function, *given)

    def run(self) -> None:
        """Serve until ``["close"]``. The engine is closed at the end."""
        self._thread = threading.get_ident()
        try:
            while not self._closing:
                self._take_commands()
                if self._pipeline.busy:
                    events = self._pipeline.step()
                    if events:
                        self._emit([[rid, *pack_event(event)] for rid, event in events])
                if self._embedding and (not self._pipeline.busy or time.perf_counter() >= self._embed_after):
                    self._embed_some()
        finally:
            self._closing = True
            self._pool.shutdown(wait=False, cancel_futures=True)
            while not self._at_work.acquire(timeout=_POLL):
                self._release_waiting()
            self._at_work.release()  # whoever was about to begin sees that it is too late
            for job in self._embedding:
                job.close()
            self._engine.close()

    def _release_waiting(self) -> None:
        """Let the thread that prepares prompts go, if it waits for the engine's."""
        with suppress(queue.Empty):
            while True:
                command = self._inbox.get_nowait()
                if command[0] == "call":
                    command[2].set_exception(EngineError("the model was unloaded"))

    def _drop_embedding(self, rid: int) -> None:
        for job in [job for job in self._embedding if job.rid == rid]:
            self._embedding.remove(job)
            job.close()

    def _embed_some(self) -> None:
        """Make a step of some embeddings; running replies get at least as long before the next one."""
        began = time.perf_counter()
        job = self._embedding[0]
        answer = job.advance(self._engine)
        self._embed_after = 2 * time.perf_counter() - began
        if answer is not None:
            self._embedding.popleft()
            self._emit([[job.rid, *answer]])
        elif not job.amid:
            self._embedding.rotate(-1)

    def _take_commands(self) -> None:
        if not self._pipeline.busy and not self._embedding:
            self._handle(self._next_command())
        while not self._closing:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._handle(command)

    def _next_command(self) -> list[Any]:
        """Wait for a command; the engine does what it put off when none comes soon."""
        with suppress(queue.Empty):
            return self._inbox.get(timeout=_QUIET)
        while self._has_put_off():
            with suppress(queue.Empty):
                return self._inbox.get_nowait()
        return self._inbox.get()

    def _has_put_off(self) -> bool:
        try:
            return bool(self._engine.idle())
        except Exception:
            # a stranger's engine may raise anything, and no request waits for this
            logging.getLogger(__name__).warning("the engine failed while it was idle", exc_info=True)
            return False

    def _handle(self, command: list[Any]) -> None:
        match command:
            case ["prepared", rid, request, prepared] if rid in self._preparing:
                self._preparing.discard(rid)
                self._pipeline.start(rid, request, prepared)
            case ["unprepared", rid, error] if rid in self._preparing:
                self._preparing.discard(rid)
                self._emit([[rid, "x", error.to_dict()]])
            case ["call", function, future]:
                self._call(function, future)
            case ["embed" | "rerank", rid, *given]:
                self._embedding.append(EmbedJob(rid, *given))
            case ["cancel", rid]:
                self._preparing.discard(rid)
                self._drop_embedding(rid)
                events = self._pipeline.cancel(rid)
                self._emit([[rid, *pack_event(event)] for event in events])
            case ["ping", rid]:
                self._emit([[rid, "e", {}]])
            case ["close"]:
                self._closing = True

    def _prepare(self, rid: int, body: dict[str, Any]) -> None:
        if rid not in self._preparing:  # cancelled while it waited here
            return
        try:
            request = unpack_request(body)
            with self._using_engine():
                prepared = self._preparer.prepare(request)
            self.post(["prepared", rid, request, prepared])
        except Exception as error:  # noqa: BLE001 - a model's template may raise anything
            self.post(["unprepared", rid, as_error(error, "preparing the prompt")])

    def _look_up(self, rid: int, what: str, given: list[Any]) -> None:
        """Answer what takes no turn."""
        try:
            with self._using_engine():
                answer = self._found(what, given)
            self._emit([[rid, "e", answer]])
        except Exception as error:  # noqa: BLE001 - a model's template may raise anything
            self._emit([[rid, "x", as_error(error, "preparing the prompt").to_dict()]])

    def _found(self, what: str, given: list[Any]) -> dict[str, Any]:
        if what == "prompt":
            return asdict(self._preparer.describe(unpack_request(given[0])))
        if what == "tokenize":
            return {"tokens": self._preparer.tokenize(*given)}
        return {"text": self._there(lambda: text_of(self._engine, given[0]))}

    @contextmanager
    def _using_engine(self) -> Iterator[None]:
        """Keep the engine from being closed meanwhile. Raises ``EngineError`` when that is about to happen."""
        with self._at_work:
            if self._closing:
                raise EngineError("the model was unloaded")
            yield

    def _tokenize_there(self, text: str, special: bool) -> list[int]:
        return self._there(lambda: self._engine.tokenize(text, special))

    def _image_tokens_there(self, image: Image) -> list[int]:
        return self._there(lambda: self._engine.image_tokens(image))

    def _pieces_there(self) -> list[bytes]:
        return self._there(lambda: all_pieces(self._engine))

    def _there(self, function: Callable[[], T]) -> T:
        """Call on the engine's thread. It may be this one: a grammar tokenizes while it makes a mask."""
        if threading.get_ident() == self._thread:
            return function()
        future: Future[T] = Future()
        self.post(["call", function, future])
        return future.result()

    def _call(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - goes to whoever waits for the result
            future.set_exception(error)


class ThreadedHost:
    """Runs a plain Engine: a thread for each running request, up to the engine's ``max_concurrency``."""

    def __init__(self, engine: Engine, emit: Emit) -> None:
        self._engine = engine
        self._emit = emit
        self._inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(max(1, engine.max_concurrency), "chat")
        self._cancelled: dict[int, threading.Event] = {}

    def post(self, command: list[Any]) -> None:
        """Hand a command over, from any thread."""
        self._inbox.put(command)

    def run(self) -> None:
        """Serve until ``["close"]``. The engine is closed at the end."""
        try:
            while True:
                match self._inbox.get():
                    case ["run", rid, body]:
                        self._submit(rid, self._run, unpack_request(body))
                    case ["embed" | "rerank", rid, *given]:
                        self._submit(rid, self._embed, EmbedJob(rid, *given))
                    case ["cancel", rid]:
                        flag = self._cancelled.get(rid)  # its thread may be done, and forget it, at any moment
                        if flag is not None:
                            flag.set()
                    case ["ping", rid]:
                        self._emit([[rid, "e", {}]])
                    case ["close"]:
                        return
        finally:
            for flag in list(self._cancelled.values()):
                flag.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._engine.close()

    def _submit(self, rid: int, work: Callable[[int, Any, threading.Event], None], given: Any) -> None:
        flag = self._cancelled[rid] = threading.Event()
        self._pool.submit(work, rid, given, flag)

    def _embed(self, rid: int, job: EmbedJob, cancelled: threading.Event) -> None:
        answer = _embed_all(self._engine, job, cancelled)
        del self._cancelled[rid]
        self._emit([[rid, *answer]])

    def _run(self, rid: int, request: Request, cancelled: threading.Event) -> None:
        finish = Finish("cancelled")
        try:
            if not cancelled.is_set():
                finish = self._relay(rid, request, cancelled)
        except Exception as error:  # noqa: BLE001 - a stranger's engine may raise anything
            finish = Finish("error", error=as_error(error, "answering"))
        del self._cancelled[rid]
        self._emit([[rid, *pack_event(finish)]])

    def _relay(self, rid: int, request: Request, cancelled: threading.Event) -> Finish:
        engine = self._engine
        events = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
        if request.stop:
            events = _until(request.stop, events)
        size = pieces = 0
        try:
            for event in events:
                if cancelled.is_set():
                    return Finish("cancelled")
                if not isinstance(event, _EVENTS):
                    raise EngineError(f"the {self._engine.name} engine yielded a {type(event).__name__}, not an event")
                if isinstance(event, Finish):
                    return event
                if isinstance(event, TextDelta):
                    size, pieces = size + len(event.text), pieces + 1
                elif isinstance(event, ToolCallDelta):
                    size += len(event.arguments)
                if size > _MAX_REPLY or (request.max_tokens is not None and pieces > request.max_tokens):
                    return Finish("length")
                self._emit([[rid, *pack_event(event)]])
            raise EngineError(f"the {self._engine.name} engine ended without a Finish event")
        finally:
            _close(events)


def _until(stops: tuple[str, ...], events: Iterator[Event]) -> Iterator[Event]:
    """The events up to a stop text, for engines that write on; of those that stop themselves, all."""
    matcher = StopMatcher(stops)
    try:
        for event in events:
            if not isinstance(event, TextDelta):
                if held := matcher.flush():
                    yield TextDelta(held)
                yield event
                continue
            text = matcher.feed(event.text)
            if text or event.logprobs:
                yield replace(event, text=text)
            if matcher.found is not None:
                yield Finish("stop", stop=matcher.found)
                return
    finally:
        _close(events)


def _close(events: Any) -> None:
    with suppress(Exception):  # what a stranger's generator does while it is closed changes nothing here
        events.close()


Host = TokenHost | ThreadedHost


def host_for(engine: Engine, emit: Emit, names: str) -> Host:
    """The host that fits the engine; ``names`` are the model's, for choosing a template where it brings none."""
    return TokenHost(engine, emit, names) if isinstance(engine, TokenEngine) else ThreadedHost(engine, emit)
