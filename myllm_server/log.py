"""One log line a request, and the id that ties it to the answer. Never a prompt, a query string or a key."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("myllm.access")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_PATH = 200


def printable(text: str) -> str:
    """``text`` on one line: control, format and other unprintable characters are escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:_MAX_PATH])
    return shown + "…" if len(text) > _MAX_PATH else shown


class RequestLog:
    """ASGI middleware: gives each request an id (the client's own if it is a plain one) and logs its end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await (_close_websocket(send) if scope["type"] == "websocket" else self.app(scope, receive, send))
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = identity
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
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        try:
            await self.app(scope, watch_receive, watch_send)
        finally:
            logger.info(
                "%s %s %s %.0f ms %s",
                printable(scope["method"]),
                printable(scope["path"]),
                "499 client gone" if gone else status or 500,
                (time.perf_counter() - began) * 1000,
                identity,
            )


async def _close_websocket(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1008})
