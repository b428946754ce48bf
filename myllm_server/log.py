"""One log line a request, and the id that ties it to the answer. Never a prompt, a query string or a key."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_server.headers import secured
from myllm_server.records import REQUEST_ID, printable

logger = logging.getLogger("myllm.access")

CLIENT_GONE = 499
OnEnd = Callable[[Scope, int, float], None]
"""Called with scope, status and seconds when a request has ended."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """ASGI middleware: gives each request an id (the client's own if it is a plain one), logs and tells its end."""

    def __init__(self, app: ASGIApp, on_end: OnEnd) -> None:
        self.app = app
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await (_close_websocket(send) if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
        token = REQUEST_ID.set(identity)
        began = time.perf_counter()
        status, ended, gone = 0, False, False

        async def watch_receive() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        async def watch_send(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                added = (*message.get("headers", ()), (b"x-request-id", identity.encode()))
                message["headers"] = secured(added)
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        try:
            await self.app(scope, watch_receive, watch_send)
        finally:
            seconds = time.perf_counter() - began
            status = CLIENT_GONE if gone else status or 500
            self.on_end(scope, status, seconds)
            _log(scope, status, seconds)
            REQUEST_ID.reset(token)


def _log(scope: Scope, status: int, seconds: float) -> None:
    method, path, ms = printable(scope["method"]), printable(scope["path"]), round(seconds * 1000)
    logger.info(
        "%s %s %d%s %d ms",
        method,
        path,
        status,
        " client gone" if status == CLIENT_GONE else "",
        ms,
        extra={"fields": {"method": method, "path": path, "status": status, "ms": ms}},
    )


async def _close_websocket(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1008})
