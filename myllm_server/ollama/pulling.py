"""Installing models for clients: what the pulling thread tells, as lines for whoever asked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

from myllm_core.errors import ModelNotFound, Overloaded
from myllm_core.models.reference import parse_reference
from myllm_core.runtime.runtime import Runtime
from myllm_core.transfer.pull import find_entry, pull
from myllm_core.types import Finish
from myllm_server.errors import HttpError, json_bytes
from myllm_server.ollama.errors import error_shape
from myllm_server.ollama.frames import NDJSON
from myllm_server.ollama.schemas import not_here

_LOCAL = frozenset({"file", "http", "https"})  # a client could have the server read its own files, or its network
_AT_ONCE = 4
_EVERY = 0.1  # seconds between two lines of one file

Line = dict[str, Any]

_places = threading.BoundedSemaphore(_AT_ONCE)


class _Stopped(BaseException):
    """Nobody waits for the model any more. Like Ctrl+C, no part of a pull may take it for a failed source."""


class _Told:
    """Progress of a pull, from its thread to the event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Line | Exception | None] = asyncio.Queue()
        self.stopped = threading.Event()
        self._next: dict[str, float] = {}

    def put(self, item: Line | Exception | None) -> None:
        """Hand a line, a failure or the end (None) over."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)

    def message(self, text: str) -> None:
        """A few words about what goes on."""
        self._check()
        self.put({"status": text})

    def file(self, path: str, done: int, total: int | None) -> None:
        """So many bytes of a file are here."""
        self._check()
        now = time.monotonic()
        if done == total or now >= self._next.get(path, 0.0):
            self._next[path] = now + _EVERY
            sizes = {"total": total} if total is not None else {}
            self.put({"status": f"pulling {path}", "digest": f"file:{path}", **sizes, "completed": done})

    def _check(self) -> None:
        if self.stopped.is_set():
            raise _Stopped


def check_reference(runtime: Runtime, reference: str) -> None:
    """Raise what is wrong with a reference that came over HTTP. May import plugins: call it on a thread."""
    parsed = parse_reference(reference, frozenset(runtime.plugins.downloaders()))
    if parsed.scheme in _LOCAL:
        raise not_here(reference)
    if parsed.scheme or find_entry(runtime.plugins.catalog(), parsed.rest):
        return
    try:
        runtime.models.get(parsed.rest)
    except ModelNotFound:
        raise ModelNotFound(
            f"there is no model {reference} in the catalogue; names: myllm pull --list, or send hf.co/owner/repo",
            model=reference,
        ) from None


async def pulled(runtime: Runtime, reference: str) -> AsyncGenerator[Line | Finish, None]:
    """Install a model: yields what goes on, and a ``Finish`` last. Closing this stops it; the next try goes on.

    Raises what ``pull`` raises, and ``Overloaded`` when too many are being pulled.
    """
    await asyncio.to_thread(check_reference, runtime, reference)
    if not _places.acquire(blocking=False):
        raise Overloaded(f"{_AT_ONCE} models are being pulled; try again later", retry_after=30)
    told = _Told()

    def work() -> None:
        try:
            pull(reference, plugins=runtime.plugins, store=runtime.models, progress=told)
            told.put(None)
        except _Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            told.put(error)
        finally:
            _places.release()

    # a daemon: a server that stops doesn't wait for a source that is silent, and a pull survives being cut off
    threading.Thread(target=work, name=f"pull {reference}", daemon=True).start()
    try:
        yield {"status": "pulling manifest"}
        while (item := await told.queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
        yield Finish("stop")
    finally:
        told.stopped.set()


class PullLines:
    """A streamed pull."""

    content_type = NDJSON.encode()
    ping = b'{"status":"waiting"}\n'

    def event(self, event: Line | Finish) -> bytes:
        """The line of an event."""
        return json_bytes({"status": "success"} if isinstance(event, Finish) else event) + b"\n"

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last line of a pull that failed."""
        return json_bytes(error_shape(error, request_id)[1]) + b"\n"


async def finished(lines: AsyncGenerator[Line | Finish, None]) -> None:
    """Wait for a pull. Raises what it raises."""
    async for _ in lines:
        pass
