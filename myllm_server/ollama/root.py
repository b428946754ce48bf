"""The Ollama dialect at the root of a port of its own, for clients that take no path."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from myllm_server.ollama.errors import PREFIX


class AtRoot:
    """ASGI middleware in front of all others: what comes to ``port`` is about this dialect only.

    So whatever holds for its routes, such as keys, limits and the log, holds here too.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        server = scope.get("server")
        if server and server[1] == self.port:
            before = PREFIX.removesuffix("/")
            raw = before.encode() + scope.get("raw_path", scope["path"].encode())
            scope = {**scope, "path": before + scope["path"], "raw_path": raw}
        await self.app(scope, receive, send)
