"""uvicorn with the limits that it lacks, and a graceful stop. Only ``run.py`` imports this, when it serves."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
from uvicorn import Config, Server  # noqa: TID253 - this module is imported inside serve()
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: TID253

from myllm_server.errors import HttpError, json_bytes
from myllm_server.gate import Gate

logger = logging.getLogger("myllm.server")

_BARE_LF = re.compile(rb"(?<!\r)\n")
_HEAD_END = re.compile(rb"\n\r?\n")
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


class HttpProtocol(H11Protocol):
    """HTTP/1.1 that drops connections whose head comes too slowly or whose reader stands still."""

    def __init__(self, config: ServerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._timeout = config.read_timeout
        self._head = b""
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
            if not self._take_head(data):
                self.send_400_response("a line of the request ends without a carriage return")
                return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            _stop(self._head_timer)
            self._head_timer = None

    def _take_head(self, data: bytes) -> bool:
        """Whether all lines of the head that ``data`` goes on with end in CR LF."""
        self._head += data
        end = _HEAD_END.search(self._head)
        head = self._head[: end.end()] if end else self._head
        if end:
            self._head = b""
        else:
            self._head = self._head[-4:]
        return not _BARE_LF.search(head, 1 if head[:1] == b"\n" else 0)

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
            content = json_bytes(error.body(identity))
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                (b"x-request-id", identity.encode()),
                (b"connection", b"close"),
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


class GracefulServer(Server):
    """uvicorn's server with a graceful stop.

    On a first signal what is new gets 503, until what runs has ended or ``grace`` seconds are over. A second one
    ends everything at once; ``forced_by`` is its number then. ``ready`` is called when requests are taken.
    """

    def __init__(self, config: Config, gate: Gate, grace: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.gate = gate
        self.grace = grace
        self.ready = ready
        self.forced_by: int | None = None
        self._deadline: float | None = None

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        """Start, and say so."""
        await super().startup(*args, **kwargs)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A stop signal came."""
        if self.gate.closed:
            self.forced_by = sig
            self.force_exit = self.should_exit = True
        self.gate.closed = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to shut down now; asked ten times a second."""
        if await super().on_tick(counter):
            return True
        if not self.gate.closed:
            return False
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self.grace
            if self.gate.running:
                logger.info("stopping: %d requests still run", len(self.gate.running))
        return not self.gate.running or now >= self._deadline

    async def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End what still runs, and close."""
        self.gate.closed = True
        self.gate.cancel_running()
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await super().shutdown(*args, **kwargs)


def exit_code(server: GracefulServer) -> int:
    """0 after a graceful stop; 128 and the number of the signal that forced one."""
    return 0 if server.forced_by is None else 128 + signal.Signals(server.forced_by)
