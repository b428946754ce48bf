"""The parent's side of a loaded model: requests in, streams of events out, whatever runs it."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from myllm_core.discovery import Plugin
from myllm_core.engine import Engine
from myllm_core.errors import DeadlineExceeded, EngineError, MyllmError, WorkerDied, error_from_dict
from myllm_core.models.manifest import Model
from myllm_core.runtime.wire import pack_event, pack_request, unpack_event
from myllm_core.types import Embeddings, Event, Finish, Progress, Request, Scores

OnProgress = Callable[[Progress], None]
OnDeath = Callable[[MyllmError], None]


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What to load, with which engine of which plugin, and how."""

    model: Model
    plugin: Plugin
    engine: type[Engine]
    options: Mapping[str, Any]
    load_timeout: float


class _Stream:
    """Events of one request on their way to whoever reads them; text is joined while nobody does."""

    def __init__(self) -> None:
        self._items: deque[list[Any]] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: list[Any]) -> None:
        last = self._items[-1] if self._items else None
        if last is not None and item[0] == last[0] == "t" and len(item) == len(last) == 2:
            last[1] += item[1]
        else:
            self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> list[Any]:
        """The next item; for one reader."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._items.popleft()


class Handle:
    """A loaded model. Made by ``start``; every method belongs to the event loop that made it."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.facts: dict[str, Any] = {}
        self.dead: MyllmError | None = None
        self.proved = False  # a request was answered
        self._ids = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._last_progress = 0.0
        self._asked_at = 0.0  # when the oldest ping was sent that nothing has come after
        self.cancelling = False  # a request was cancelled, and nothing has come since: a step may still run
        self.on_progress: OnProgress = lambda progress: None
        self.on_death: OnDeath = lambda error: None

    @property
    def pid(self) -> int | None:
        """The worker's process id; None when it runs in a thread."""
        return None

    def _post(self, command: list[Any]) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """Unload: running requests end with an error, memory goes back."""
        raise NotImplementedError

    async def run(self, request: Request, timeout: float = math.inf) -> AsyncGenerator[Event, None]:
        """Events of a request, one Finish last. Closing the generator cancels the request.

        After ``timeout`` seconds it ends with a ``DeadlineExceeded``.
        """
        rid, stream = self._open()
        finished = False
        timer = self._expire_after(timeout, rid, stream)
        try:
            self._post(["run", rid, pack_request(request)])
            while not finished:
                item = await stream.get()
                if item[0] == "x":
                    finished = True
                    raise error_from_dict(item[1])
                event = unpack_event(item)
                finished = isinstance(event, Finish)
                self.proved = self.proved or (isinstance(event, Finish) and event.error is None)
                yield event
        finally:
            if timer is not None:
                timer.cancel()
            del self._streams[rid]
            if not finished:
                self.cancelling = True
                self._post(["cancel", rid])

    def _expire_after(self, timeout: float, rid: int, stream: _Stream) -> asyncio.TimerHandle | None:
        if math.isinf(timeout):
            return None

        def expire() -> None:
            stream.put(["f", _finish(_too_long("the reply", timeout))])
            self._post(["cancel", rid])

        return asyncio.get_running_loop().call_later(timeout, expire)

    async def embed(self, inputs: list[str], timeout: float = math.inf) -> Embeddings:
        """One vector per input. Raises what the engine raises, and ``DeadlineExceeded`` after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                return Embeddings(**await self._ask(["embed", inputs]))
        except TimeoutError:
            raise _too_long("the embedding", timeout) from None

    async def rerank(self, query: str, documents: list[str], timeout: float = math.inf) -> Scores:
        """One score per document. Raises as ``embed`` does."""
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                made = Embeddings(**await self._ask(["rerank", documents, query]))
        except TimeoutError:
            raise _too_long("scoring the documents", timeout) from None
        return Scores([score for (score,) in made.vectors], made.prompt_tokens)

    async def look_up(self, what: str, *given: Any, timeout: float = math.inf) -> dict[str, Any]:
        """What takes no turn: ``prompt`` of a request, ``tokenize``, ``detokenize``. Raises as ``embed`` does."""
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                return await self._ask([what, *given])
        except TimeoutError:
            raise _too_long("the answer", timeout) from None

    async def ping(self) -> None:
        """Return when the worker's loop answers. Raises ``WorkerDied`` when it is gone."""
        self._note_ping()
        await self._ask(["ping"])

    def _note_ping(self) -> None:
        self._asked_at = self._asked_at or asyncio.get_running_loop().time()

    @property
    def unanswered(self) -> float:
        """For how many seconds the worker has left a ping unanswered; 0 when it hasn't."""
        return asyncio.get_running_loop().time() - self._asked_at if self._asked_at else 0.0

    async def _ask(self, command: list[Any]) -> dict[str, Any]:
        rid, stream = self._open()
        item = None
        try:
            self._post([command[0], rid, *command[1:]])
            item = await stream.get()
        finally:
            del self._streams[rid]
            if item is None:
                self._post(["cancel", rid])
        if item[0] == "e":
            return dict(item[1])
        if item[0] == "x":
            raise error_from_dict(item[1])
        event = unpack_event(item)
        error = event.error if isinstance(event, Finish) else None
        raise error or EngineError("the worker gave an unexpected answer")

    def _open(self) -> tuple[int, _Stream]:
        if self.dead is not None:
            raise self.dead
        rid, stream = next(self._ids), _Stream()
        self._streams[rid] = stream
        return rid, stream

    def check_alive(self, patience: float) -> None:
        """Ask the worker to say something; end it when it hasn't for ``patience`` seconds."""
        if self.unanswered <= patience:
            self._note_ping()
            self._post(["ping", 0])
            return
        self.dead = WorkerDied(
            f"the process running {self.order.model.name} said nothing for {patience:g} s and was ended; "
            "the next request starts it again"
        )
        self.kill()

    def kill(self) -> None:
        """End the worker at once, where it can be ended."""
        raise NotImplementedError

    def _receive(self, batch: list[list[Any]]) -> None:
        self._asked_at, self.cancelling = 0.0, False
        for rid, *item in batch:
            if rid:
                stream = self._streams.get(rid)
                if stream is not None:
                    stream.put(item)
            elif item[0] == "p":
                self._last_progress = asyncio.get_running_loop().time()
                self.on_progress(Progress(*item[1:]))
            elif item[0] == "ready":
                self.facts = item[1]
                self._resolve(None)
            elif item[0] == "failed":
                self._resolve(error_from_dict(item[1]))

    def _resolve(self, error: MyllmError | None) -> None:
        if self._loaded.done():
            return
        if error is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(error)

    def _end(self, error: MyllmError) -> None:
        """The worker is gone: everything that still runs ends with ``error``."""
        self.dead = self.dead or error
        self._resolve(self.dead)
        for stream in self._streams.values():
            stream.put(["f", _finish(self.dead)])

    async def _wait_loaded(self) -> None:
        """Wait for ``ready``, as long as progress is made."""
        loop = asyncio.get_running_loop()
        self._last_progress = loop.time()
        while not self._loaded.done():
            left = self._last_progress + self.order.load_timeout - loop.time()
            if left <= 0:
                name, seconds = self.order.model.name, self.order.load_timeout
                raise EngineError(
                    f"loading {name} made no progress for {seconds:g} s; raise load_timeout if it is slow"
                )
            await asyncio.wait([self._loaded], timeout=min(left, 3600))
        self._loaded.result()


def _too_long(what: str, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{what} took longer than {timeout:.3g} s; ask for less, or raise request_timeout")


def _finish(error: MyllmError) -> dict[str, Any]:
    return dict(pack_event(Finish("error", error=error))[1])
