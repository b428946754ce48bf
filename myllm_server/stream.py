"""Answers that follow a generation: Server-Sent Events while it runs, and one JSON document when it is done.

Either way the generation ends when the client goes away, whether it waits, reads its prompt or writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from myllm_core.errors import EngineError
from myllm_core.types import Event, Finish, Progress
from myllm_server.audit import note_failure
from myllm_server.errors import ClientGone, HttpError, as_http, request_id
from myllm_server.gate import STOPPING
from myllm_server.records import printable

logger = logging.getLogger("myllm.server")

_TICK = 1.0  # seconds between two looks at a silent stream
_PATIENCE = 2.0  # seconds before a stream starts with what goes on; most of what can go wrong has by then
_DOING = {"load": "loading", "prompt": "reading the prompt"}

CHUNK = "myllm.chunk"
"""The extension of the ASGI scope that takes a piece of a streamed body, not empty, not the first and not the last.

It is called with bytes, and writes them at once; False: it can't, send them as a message. A message goes through
every middleware and h11, which together cost as much as all else that is done for a token.
"""

T = TypeVar("T")
E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class Frames(Protocol[E_contra]):
    """How an API writes events. One object serves one stream."""

    content_type: bytes
    ping: bytes

    def event(self, event: E_contra) -> bytes:
        """The bytes that tell of ``event``; empty when it isn't told. A ``Finish`` ends the stream.

        Those of a ``Progress`` without usage (see ``comment``) are held back while there is something else to tell.
        """

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last bytes of a stream that failed."""


class EventStream(Response, Generic[E]):
    """An ASGI response that writes events as they come.

    The response starts with the first frame, so that what goes wrong before it has an HTTP status of its own.
    When there is none for a while it starts with a comment, of what goes on or after ``ping_interval`` seconds of
    silence an empty one: it keeps proxies and clients from giving up, and later failures are error frames.
    ``headers`` are added to the response's.
    """

    def __init__(
        self,
        events: AsyncGenerator[E, None],
        frames: Frames[E],
        ping_interval: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.events = events
        self.frames = frames
        self.ping_interval = ping_interval
        self._started = False
        self._ended = False
        self._writes = 0
        self._news = self._old_news = b""
        self._writing = asyncio.Lock()
        self._chunk: Callable[[bytes], bool] = lambda frame: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the whole stream."""
        self._chunk = scope.get("extensions", {}).get(CHUNK, self._chunk)
        pull = asyncio.create_task(self._pull(scope, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await self._attend(pull, gone, send)
        except asyncio.CancelledError:
            if not self._started:
                raise
            await _settle(pull)
            await self._write(send, self.frames.error(STOPPING, request_id(scope)), last=True)
        finally:
            await _settle(pull, gone)
            await self.events.aclose()
        if not pull.cancelled():
            pull.result()

    async def _attend(self, pull: asyncio.Task[None], gone: asyncio.Task[None], send: Send) -> None:
        tick = min(_TICK, self.ping_interval)
        written, silent = 0, 0.0
        while not pull.done() and not gone.done():
            await asyncio.wait({pull, gone}, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
            silent = silent + tick if self._writes == written else 0.0
            comment = self._comment(silent)
            if comment and not pull.done() and not gone.done() and not self._writing.locked():
                silent = 0.0
                await self._write(send, comment)
            written = self._writes

    def _comment(self, silent: float) -> bytes:
        """What to write after so many seconds of silence, if anything."""
        if self._news != self._old_news and (self._started or silent >= min(_PATIENCE, self.ping_interval)):
            self._old_news = self._news
            return self._news
        return self.frames.ping if silent >= self.ping_interval else b""

    async def _pull(self, scope: Scope, send: Send) -> None:
        try:
            async for event in self.events:
                frame = self.frames.event(event)
                if isinstance(event, Progress):
                    self._news = b"" if event.usage else frame
                    if event.usage is None:
                        continue
                if frame and (isinstance(event, Finish) or not self._write_at_once(frame)):
                    await self._write(send, frame, last=isinstance(event, Finish))
            if not self._ended:
                raise EngineError("the generation ended without saying why")
        except Exception as error:  # a started stream tells every failure in its last frame
            if not self._started:
                raise
            shown = as_http(error)
            if shown.code == "internal_error":
                logger.exception("a stream failed")
            await self.events.aclose()  # who reads of the failure finds the place free
            if not self._ended:
                note_failure(scope, shown.code)
                await self._write(send, self.frames.error(shown, request_id(scope)), last=True)

    def _write_at_once(self, frame: bytes) -> bool:
        if not self._started or self._ended or self._writing.locked() or not self._chunk(frame):
            return False
        self._writes += 1
        return True

    async def _write(self, send: Send, frame: bytes, last: bool = False) -> None:
        async with self._writing:
            if self._ended:
                return
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self._start_headers()})
            self._writes += 1
            self._ended = last
            await send({"type": "http.response.body", "body": frame, "more_body": not last})

    def _start_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", self.frames.content_type),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *self.added,
        ]


def comment(progress: Progress) -> bytes:
    """A comment of Server-Sent Events: ``: loading 42 %``, ``: queue 3 waiting``."""
    if progress.usage:
        return b""  # the prompt has been read: nothing is waited for any more
    fraction = "" if progress.fraction is None else f"{progress.fraction * 100:.0f} %"
    words = (_DOING.get(progress.stage, progress.stage), fraction, progress.detail)
    return f": {printable(' '.join(filter(None, words)))}\n\n".encode()


async def attended(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away first. Raises ``ClientGone`` then."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _settle(task, gone)


async def collected(events: AsyncGenerator[Event, None]) -> tuple[list[Event], Finish]:
    """All events and the last one. Raises the error of a generation that failed."""
    seen: list[Event] = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finish):
                if event.error:
                    raise event.error
                return seen, event
            seen.append(event)
    raise EngineError("the generation ended without saying why")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _settle(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until each has cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
