"""One HTTP request on a connection of its own, which can be left at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import h11


class CutOff(Exception):
    """The server closed the connection in the middle of an answer, or before it."""


class Call:
    """``async with Call(port) as call``, then ``send``, ``head``, and ``data`` or ``body``."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
        self.status = 0
        self.headers: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**16)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    async def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a whole request."""
        sent = {"host": "localhost", "connection": "close", **(headers or {})}
        if body:
            sent = {"content-type": "application/json", "content-length": str(len(body)), **sent}
        parts = [h11.Request(method=method, target=path, headers=list(sent.items()))]
        events: list[h11.Event] = [*parts, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        self._writer.write(b"".join(self._http.send(event) or b"" for event in events))
        await self._writer.drain()

    async def head(self) -> int:
        """Wait for the answer's begin. Raises ``CutOff``."""
        event = await self._next()
        assert isinstance(event, h11.Response), event
        self.status = event.status_code
        self.headers = {name.decode(): value.decode() for name, value in event.headers}
        return self.status

    async def data(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes. Raises ``CutOff`` when it isn't whole."""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def body(self) -> bytes:
        """The answer's whole body."""
        return b"".join([part async for part in self.data()])

    async def _next(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    assert not isinstance(event, type), event
                    return event
                self._http.receive_data(await self._reader.read(65536))
            except (h11.RemoteProtocolError, ConnectionError) as error:
                raise CutOff(f"after status {self.status or 'none'}: {error}") from error


async def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request with a JSON answer: its status and the values."""
    async with Call(port) as call:
        await call.send(method, path, json.dumps(body).encode() if body is not None else b"")
        status = await call.head()
        return status, json.loads(await call.body() or b"null")
