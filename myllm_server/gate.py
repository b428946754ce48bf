"""How many requests at a time, and until when: the limit, the graceful stop, and the failures nobody caught."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_core.errors import Overloaded
from myllm_server.body import refuse
from myllm_server.errors import HttpError, as_http, error_response
from myllm_server.limits import UNLIMITED

logger = logging.getLogger("myllm.server")

STOPPING = HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "the server is stopping", headers={"retry-after": "5"})


class Gate:
    """The requests that run now. ``closed`` lets no new one in."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.closed = False
        self.running: set[asyncio.Task[object]] = set()

    def cancel_running(self) -> None:
        """End what still runs: streams with an error frame, others with 503."""
        for task in self.running:
            task.cancel("the server is stopping")

    def refusal(self, path: str) -> HttpError | None:
        """Why a new request to ``path`` can't come in now, if it can't."""
        if self.closed:
            return STOPPING
        if len(self.running) >= self.limit and path not in UNLIMITED:
            full = Overloaded(f"{self.limit} requests are running; try again in a moment", retry_after=1)
            return as_http(full)
        return None


class GateKeeper:
    """ASGI middleware around a ``Gate``."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self.gate.refusal(scope["path"])
        if refusal:
            await refuse(refusal, scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        self.gate.running.add(task)
        try:
            await _answered(self.app, scope, receive, send)
        finally:
            self.gate.running.discard(task)


async def _answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    started = False

    async def watch(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, watch)
    except asyncio.CancelledError:  # by the gate; a stream tells of it itself
        if not started:
            await error_response(STOPPING, scope)(scope, receive, send)
    except Exception as error:
        if started:
            raise  # all that can be done is to break the connection off
        logger.exception("a request failed")
        await error_response(error, scope)(scope, receive, send)
