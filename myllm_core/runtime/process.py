"""The parent's side of a loaded model: requests in, streams of events out, over a worker process or a thread."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from myllm_core.discovery import Plugin
from myllm_core.engine import Engine
from myllm_core.errors import DeadlineExceeded, EngineError, MyllmError, WorkerDied, error_from_dict
from myllm_core.models.manifest import Model
from myllm_core.runtime.hosts import Host, as_error, host_for
from myllm_core.runtime.wire import HEADER, MAX_FRAME, frame, pack_facts, pack_model, pack_request, unpack_event
from myllm_core.types import Embeddings, Event, Finish, Progress, Request

log = logging.getLogger("myllm.worker")

_LOG_TAIL = 8 * 1024
_CLOSE_GRACE = 5.0
OnProgress = Callable[[Progress], None]


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
        self._ready = asyncio.Event()

    def put(self, item: list[Any]) -> None:
        last = self._items[-1] if self._items else None
        if last is not None and item[0] == last[0] == "t" and len(item) == len(last) == 2:
            last[1] += item[1]
        else:
            self._items.append(item)
        self._ready.set()

    async def get(self) -> list[Any]:
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        return self._items.popleft()


class Handle:
    """A loaded model. Made by ``start``; every method belongs to the event loop that made it."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.facts: dict[str, Any] = {}
        self.dead: MyllmError | None = None
        self._ids = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._last_progress = 0.0
        self.on_progress: OnProgress = lambda progress: None

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
                yield event
        finally:
            if timer is not None:
                timer.cancel()
            del self._streams[rid]
            if not finished:
                self._post(["cancel", rid])

    def _expire_after(self, timeout: float, rid: int, stream: _Stream) -> asyncio.TimerHandle | None:
        if math.isinf(timeout):
            return None

        def expire() -> None:
            error = DeadlineExceeded(
                f"the reply took longer than {timeout:g} s; ask for less, or raise request_timeout"
            )
            stream.put(["f", _finish(error)])
            self._post(["cancel", rid])

        return asyncio.get_running_loop().call_later(timeout, expire)

    async def embed(self, inputs: list[str]) -> Embeddings:
        """One vector per input. Raises what the engine raises."""
        return Embeddings(**await self._ask(["embed", inputs]))

    async def ping(self) -> None:
        """Return when the worker's loop answers. Raises ``WorkerDied`` when it is gone."""
        await self._ask(["ping"])

    async def _ask(self, command: list[Any]) -> dict[str, Any]:
        rid, stream = self._open()
        try:
            self._post([command[0], rid, *command[1:]])
            item = await stream.get()
        finally:
            del self._streams[rid]
        if item[0] == "e":
            return dict(item[1])
        finish = error_from_dict(item[1]) if item[0] == "x" else unpack_event(item)
        raise finish if isinstance(finish, MyllmError) else EngineError("the worker gave an unexpected answer")

    def _open(self) -> tuple[int, _Stream]:
        if self.dead is not None:
            raise self.dead
        rid, stream = next(self._ids), _Stream()
        self._streams[rid] = stream
        return rid, stream

    def _receive(self, batch: list[list[Any]]) -> None:
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


def _finish(error: MyllmError) -> dict[str, Any]:
    from myllm_core.runtime.wire import pack_event

    return dict(pack_event(Finish("error", error=error))[1])


def worker_environment() -> dict[str, str]:
    """The environment of a worker: OpenMP threads give the processor back soon when they have nothing to do."""
    environment = dict(os.environ)
    environment.setdefault("OMP_WAIT_POLICY", "active")
    environment.setdefault("GOMP_SPINCOUNT", "20000")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


class WorkerProcess(Handle):
    """A model in a process of its own: a crash in native code ends this model only, and its memory comes back."""

    def __init__(self, order: LoadOrder, process: asyncio.subprocess.Process) -> None:
        super().__init__(order)
        self._process = process
        self._log: deque[bytes] = deque()
        self._log_size = 0
        self._closing = False
        self._tasks = [asyncio.create_task(self._read_log()), asyncio.create_task(self._read_events())]

    @classmethod
    async def start(cls, order: LoadOrder, on_progress: OnProgress) -> WorkerProcess:
        """Start a worker and wait until the model is loaded. Raises ``EngineError``."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "myllm_core.runtime.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=worker_environment(),
            limit=2**20,
        )
        worker = cls(order, process)
        worker.on_progress = on_progress
        point = order.plugin.entry_point
        worker._send(
            {
                "parent": os.getpid(),
                "plugin": [point.name, point.value, point.group],
                "engine": order.engine.name,
                "model": pack_model(order.model),
                "options": dict(order.options),
            }
        )
        try:
            await worker._wait_loaded()
        except BaseException:  # also when the request that wanted the model is cancelled: no worker is left behind
            await asyncio.shield(worker.close())
            raise
        return worker

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid

    def _post(self, command: list[Any]) -> None:
        self._send(command)

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        with suppress(ConnectionError, RuntimeError):  # the reader of its output finds out and says why
            self._process.stdin.write(frame(value))

    async def close(self) -> None:
        """Ask the worker to end, then insist; one that still loads isn't asked."""
        self._closing = True
        if not self.facts:
            self.kill()
        self.dead = self.dead or WorkerDied(f"{self.order.model.name} was unloaded; ask again to load it")
        self._send(["close"])
        try:
            await asyncio.wait_for(self._process.wait(), _CLOSE_GRACE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End the worker at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _read_events(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        try:
            while True:
                (size,) = HEADER.unpack(await stream.readexactly(HEADER.size))
                if size > MAX_FRAME:
                    raise ValueError("a frame is too long")
                self._receive(json.loads(await stream.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (ValueError, TypeError, LookupError) as error:
            log.error("worker %s of %s sent nonsense (%s); it is ended", self.pid, self.order.model.name, error)
            self.kill()
        finally:
            code = await self._process.wait()
            await asyncio.wait([self._tasks[0]], timeout=1)
            self._end(self._cause(code))
            if not self._closing:
                log.warning("%s", self.dead)
            if self._process.stdin is not None:
                self._process.stdin.close()

    async def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while chunk := await stream.read(4096):
            self._log.append(chunk)
            self._log_size += len(chunk)
            while self._log_size > _LOG_TAIL and len(self._log) > 1:
                self._log_size -= len(self._log.popleft())
            log.debug("%s: %s", self.order.model.name, chunk.decode("utf-8", "replace").rstrip())

    def _cause(self, code: int) -> MyllmError:
        name = self.order.model.name
        lines = b"".join(self._log)[-_LOG_TAIL:].decode("utf-8", "replace").split("\n")
        tail = [line.strip() for line in lines if line.strip()][-3:]
        if code < 0:
            how = f"was ended by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                how += " (often: out of memory; try a smaller model or context)"
        else:
            how = f"ended with exit code {code}"
        said = f"; it said: {' | '.join(tail)}"[:600] if tail else ""
        return WorkerDied(f"the process running {name} {how}{said}; the next request starts it again", exit=code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class WorkerThread(Handle):
    """A model in this process, on a thread: for tests and for embedding, without protection from crashes."""

    def __init__(self, order: LoadOrder) -> None:
        super().__init__(order)
        self._loop = asyncio.get_running_loop()
        self._host: Host | None = None
        self._thread = threading.Thread(target=self._serve, name=f"model {order.model.name}", daemon=True)

    @classmethod
    async def start(cls, order: LoadOrder, on_progress: OnProgress) -> WorkerThread:
        """Start the thread and wait until the model is loaded. Raises ``EngineError``."""
        worker = cls(order)
        worker.on_progress = on_progress
        worker._thread.start()
        await worker._wait_loaded()
        return worker

    def _serve(self) -> None:
        order = self.order
        error: MyllmError = WorkerDied(f"{order.model.name} was unloaded; ask again to load it")
        try:
            engine = order.engine.load(order.model, order.options, lambda f: self._emit([[0, "p", "load", f, ""]]))
            self._host = host_for(engine, self._emit, f"{order.model.name} {order.model.manifest.family}")
            most = getattr(engine, "max_sequences", engine.max_concurrency)
            self._emit([[0, "ready", {**pack_facts(engine.facts), "max_sequences": most}]])
            self._host.run()
        except Exception as failure:  # noqa: BLE001 - a stranger's engine may raise anything
            error = as_error(failure, "loading the model" if self._host is None else "running")
        with suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(self._end, error)

    def _emit(self, batch: list[list[Any]]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, json.loads(json.dumps(batch)))

    def _post(self, command: list[Any]) -> None:
        if self._host is not None:
            self._host.post(json.loads(json.dumps(command)))

    async def close(self) -> None:
        """Ask the thread to end and wait for it."""
        if self._host is not None:
            self._host.post(["close"])
        await asyncio.to_thread(self._thread.join, _CLOSE_GRACE)
