"""A model in a worker process: starting it, talking to it, finding out why it ended."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

from myllm_core.errors import EngineError, MyllmError, WorkerDied
from myllm_core.runtime.handle import Handle, LoadOrder, OnProgress
from myllm_core.runtime.wire import Frames, command_frame, frame, pack_model

T = TypeVar("T")

log = logging.getLogger("myllm.worker")

_LOG_TAIL = 8 * 1024
_CLOSE_GRACE = 5.0
_LAST_WORDS = 1.0
_STDOUT = 1


def worker_environment() -> dict[str, str]:
    """The environment of a worker.

    OpenMP's threads wait for each other by spinning, for a millisecond or longer by default. Beside other busy programs
    those that are waited for don't run meanwhile, and a step takes many times as long. A thread that sleeps instead has
    to be woken, some hundred times a step: after a short spin of 1,000 rounds, eight replies at a time came 3 % slower
    on a quiet machine than after 20,000.

    Where the system gives huge pages to those who ask (Linux's ``madvise``), glibc is told to ask: with its cache in
    them a model wrote a single reply 8 % quicker, and read a prompt of 300 tokens 5 % quicker, in as much memory.
    """
    environment = dict(os.environ)
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "20000")
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


class _Output(asyncio.Protocol):
    """A worker's standard output, heard where it is read; asyncio's own way takes two more turns of the event loop."""

    def __init__(self, usual: asyncio.BaseProtocol) -> None:
        self._usual = usual
        self.hear: Callable[[bytes], None] = lambda data: None
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Hear it."""
        self.hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let asyncio know: it waits for all pipes of a process."""
        self.closed.set()
        self._usual.connection_lost(exc)


class _Pipes(asyncio.subprocess.SubprocessStreamProtocol):
    """The pipes of a worker, closed when it has ended: a child that it leaves behind may hold the other ends."""

    output: _Output

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember what to close."""
        super().connection_made(transport)
        self._owned = transport
        pipe: Any = cast(asyncio.SubprocessTransport, transport).get_pipe_transport(_STDOUT)
        self.output = _Output(pipe.get_protocol())
        pipe.set_protocol(self.output)

    def process_exited(self) -> None:
        """Give what the worker said last a moment to arrive, then stop listening."""
        super().process_exited()
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._owned.close)


class WorkerProcess(Handle):
    """A model in a process of its own: a crash in native code ends this model only, and its memory comes back."""

    def __init__(self, order: LoadOrder, process: asyncio.subprocess.Process, output: _Output) -> None:
        super().__init__(order)
        self._process = process
        self._frames = Frames()
        self._output = output
        output.hear = self._hear
        self._log: deque[bytes] = deque()
        self._log_size = 0
        self._closing = False
        self._tasks = [_apart(self._read_log()), _apart(self._await_end())]

    @classmethod
    async def start(cls, order: LoadOrder, on_progress: OnProgress) -> WorkerProcess:
        """Start a worker and wait until the model is loaded. Raises ``EngineError``."""
        worker = cls(order, *await _apart(_spawn(order)))
        worker.on_progress = on_progress
        point = order.plugin.entry_point
        what = {
            "parent": os.getpid(),
            "plugin": [point.name, point.value, point.group],
            "engine": order.engine.name,
            "model": pack_model(order.model),
            "options": dict(order.options),
        }
        worker._write(frame(what))
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
        self._write(command_frame(command))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(ConnectionError, RuntimeError):  # the reader of its output finds out and says why
            self._process.stdin.write(data)

    async def close(self) -> None:
        """Ask the worker to end, then insist; one that still loads isn't asked."""
        self._closing = True
        if not self.facts:
            self.kill()
        self.dead = self.dead or WorkerDied(f"{self.order.model.name} was unloaded; ask again to load it")
        self._post(["close"])
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

    def _hear(self, data: bytes) -> None:
        try:
            for batch in self._frames.feed(data):
                self._receive(batch)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            self._output.hear = lambda data: None
            text = "worker %s of %s sent nonsense (%s); it is ended"
            log.error(text, self.pid, self.order.model.name, error, extra={"fields": self._fields()})
            self.kill()

    async def _await_end(self) -> None:
        await self._output.closed.wait()
        code = await self._process.wait()
        await asyncio.wait([self._tasks[0]], timeout=_LAST_WORDS)
        self._end(self._cause(code))
        if not self._closing and self.dead is not None:
            log.warning("%s", self.dead, extra={"fields": self._fields()})
            self.on_death(self.dead)
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        begun = b""
        while chunk := await stream.read(4096):
            self._log.append(chunk)
            self._log_size += len(chunk)
            while self._log_size > _LOG_TAIL and len(self._log) > 1:
                self._log_size -= len(self._log.popleft())
            if log.isEnabledFor(logging.DEBUG):
                *lines, begun = (begun[-4096:] + chunk).split(b"\n")
                self._pass_on(lines)
        self._pass_on([begun])

    def _pass_on(self, lines: list[bytes]) -> None:
        for line in filter(None, lines):
            text = line.decode("utf-8", "replace").rstrip()
            log.debug("%s: %s", self.order.model.name, text, extra={"fields": self._fields()})

    def _fields(self) -> dict[str, Any]:
        return {"model": self.order.model.name, "pid": self.pid}

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


def _apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Do it in a context of its own: what is logged belongs to no request, though one has begun it."""
    return asyncio.create_task(work, context=contextvars.Context())


async def _spawn(order: LoadOrder) -> tuple[asyncio.subprocess.Process, _Output]:
    loop = asyncio.get_running_loop()
    try:
        transport, pipes = await loop.subprocess_exec(
            lambda: _Pipes(limit=2**20, loop=loop),
            *(sys.executable, "-m", "myllm_core.runtime.worker"),
            env=worker_environment(),
        )
    except OSError as error:
        raise EngineError(f"can't start a process for {order.model.name}: {error.strerror}; try again later") from error
    return asyncio.subprocess.Process(transport, pipes, loop), pipes.output


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
