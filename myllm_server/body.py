"""Reading bodies within bounds: how large, and how long it may take. And refusing without losing the answer."""

from __future__ import annotations

import asyncio
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_server.errors import HttpError, json_bytes, told

_LINGER = 2.0


class BodyReader:
    """ASGI middleware that reads the body before the app sees the request: 413 when too large, 408 when too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout = None if math.isinf(timeout) else timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = HttpError(408, "body_timeout", f"the body took longer than {self.timeout:g} s")
            await refuse(error, scope, receive, send)
            return
        except HttpError as error:
            await refuse(error, scope, receive, send)
            return
        if body is None:
            return

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
            body = None
            return message

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytearray | None:
        """The body; None when the client went away."""
        if int(_header(scope, b"content-length") or 0) > self.max_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return body

    def _too_large(self) -> HttpError:
        return HttpError(413, "body_too_large", f"the body is larger than {self.max_bytes} bytes (max_body_bytes)")


async def refuse(error: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error before the body was read, and close the connection if there is one.

    What still comes in is read and thrown away for a moment: a connection that is closed with unread
    data is reset, and the client would lose the answer.
    """
    status, body = told(error, scope)
    content = json_bytes(body)
    headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
    unread = _has_body(scope)
    if unread:
        headers["connection"] = "close"
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content, "more_body": unread})
    if unread:
        await _discard(receive)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_LINGER):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
    except TimeoutError:
        pass


def _has_body(scope: Scope) -> bool:
    return _header(scope, b"transfer-encoding") is not None or (_header(scope, b"content-length") or b"0") != b"0"


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)
