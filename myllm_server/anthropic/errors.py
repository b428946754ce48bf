"""Errors as Anthropic's clients know them: ``{"type": "error", "error": {"type", "message"}, "request_id"}``."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_server.errors import ERROR_PATH, HttpError, request_id

PREFIX = "/v1/messages/"

_OVERLOADED = 529  # the dialect's own status for too much to do
_STATUSES = {"invalid_reference": 404, "integrity_error": 500, "overloaded": _OVERLOADED, "stopping": _OVERLOADED}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}


def error_shape(error: HttpError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    status = _STATUSES.get(error.code, 400 if error.status == 422 else error.status)
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return status, {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


def asks(scope: Scope) -> bool:
    """Whether a request is one of this dialect.

    It shares ``/v1/models`` with OpenAI's; its clients tell themselves by a header.
    """
    path = f"{scope['path']}/"
    if path.startswith(PREFIX):
        return True
    return path.startswith("/v1/") and any(name == b"anthropic-version" for name, _ in scope["headers"])


class AnthropicRequests:
    """ASGI middleware: marks requests of this dialect, and tells their clients the request's id in their header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not asks(scope):
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})[ERROR_PATH] = PREFIX
        identity = (b"request-id", request_id(scope).encode("latin-1"))

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), identity]}
            await send(message)

        await self.app(scope, receive, identified)
