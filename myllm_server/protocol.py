"""uvicorn's HTTP/1.1 with the limits that it lacks. Imported only inside ``serve``."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from uvicorn import Config  # noqa: TID253 - this module is imported inside serve()
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle  # noqa: TID253

from myllm_server.errors import HttpError, json_bytes
from myllm_server.headers import SECURITY
from myllm_server.log import logger
from myllm_server.stream import CHUNK

_BARE_LF = re.compile(rb"(?<!\r)\n")
_HEAD_END = re.compile(rb"\n\r?\n")
_MAX_HEAD = 64 * 1024
_MAX_LINES = 128
_IDLE_WAIT = 15
_FORCED_WAIT = 2


class ServerConfig(Config):
    """uvicorn's configuration; ``read_timeout`` is in seconds, infinite for none."""

    def __init__(self, app: Any, read_timeout: float, **more: Any) -> None:
        super().__init__(
            app,
            http=HttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_WAIT,
            timeout_graceful_shutdown=_FORCED_WAIT,
            **more,
        )
        self.read_timeout = read_timeout


class Head:
    """Checks heads as they arrive for what h11 is lenient about: how long they are, and how their lines end."""

    def __init__(self) -> None:
        self._tail = b""
        self._bytes = 0
        self._lines = 0

    def feed(self, data: bytes) -> HttpError | None:
        """What is wrong with a head that goes on with ``data``. A head that ends makes room for the next."""
        seen = self._tail + data
        end = _HEAD_END.search(seen)
        head = seen[: end.end()] if end else seen
        new = head[len(self._tail) :]
        bare = _BARE_LF.search(head, 1 if self._tail[:1] == b"\n" else 0)
        self._bytes += len(new)
        self._lines += new.count(b"\n")
        if bare:
            return HttpError(400, "invalid_http", "a line of the request ends without a carriage return")
        if self._bytes > _MAX_HEAD or self._lines > _MAX_LINES:
            limits = f"{_MAX_HEAD} bytes and {_MAX_LINES} lines"
            return HttpError(431, "head_too_large", f"the request's head is larger than {limits}")
        if end:
            self._tail, self._bytes, self._lines = b"", 0, 0
        else:
            self._tail = head[-4:]
        return None


class HttpProtocol(H11Protocol):
    """HTTP/1.1 that drops connections whose head comes too slowly or whose reader stands still."""

    def __init__(self, config: ServerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._timeout = config.read_timeout
        self._asked, self.app = self.app, self._answer
        self._head = Head()
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._head_timer = self._later(self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for anything."""
        _stop(self._head_timer)
        self._head_timer = None
        _stop(self._write_timer)
        self._write_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Check a head's line ends, which h11 is lenient about, and time it."""
        if self.conn.their_state is h11.IDLE:
            self._head_timer = self._head_timer or self._later(self._head_too_slow)
            problem = self._head.feed(data)
            if problem:
                self._refuse(problem)
                return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _stop(self._head_timer)
            self._head_timer = None

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the app, which finds in the scope a shorter way out for the pieces of a stream."""
        if scope["http_version"] == "1.1" and scope["method"] != "HEAD":
            scope["extensions"] = {CHUNK: partial(self._chunk, self.cycle)}
        await self._asked(scope, receive, send)

    def _chunk(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        flows = cycle.response_started and not cycle.response_complete and not cycle.disconnected
        if not flows or self.flow.write_paused:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _later(self, callback: Callable[[], None]) -> asyncio.TimerHandle | None:
        return None if math.isinf(self._timeout) else self.loop.call_later(self._timeout, callback)

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            self._refuse(HttpError(408, "head_timeout", f"the request's head took longer than {self._timeout:g} s"))

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(HttpError(400, "invalid_http", msg))

    def _refuse(self, error: HttpError) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            identity = secrets.token_hex(8)
            fields = {"request_id": identity, "status": error.status, "code": error.code}
            logger.info("- - %d %s", error.status, error.code, extra={"fields": fields})
            content = json_bytes(error.body(identity))
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                (b"x-request-id", identity.encode()),
                (b"connection", b"close"),
                *SECURITY,
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Give a reader that stands still some time, then drop it: its reply holds a place in the batch."""
        super().pause_writing()
        self._write_timer = self._write_timer or self._later(self.transport.abort)

    def resume_writing(self) -> None:
        """The reader reads again."""
        super().resume_writing()
        _stop(self._write_timer)
        self._write_timer = None


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
