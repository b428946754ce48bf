"""A log line for each call that changes something for others: who, what, which model, how it ended."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_server.keys import ANYBODY, key_in
from myllm_server.log import CLIENT_GONE
from myllm_server.records import printable
from myllm_server.scopes import is_read, scope_for

logger = logging.getLogger("myllm.audit")

_FAILED = 400


class Audit:
    """ASGI middleware: logs management calls when they have ended, refused ones too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not _is_audited(scope["method"], scope["path"]):
            await self.app(scope, receive, send)
            return
        status, ended = CLIENT_GONE, False

        async def watch(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                ended = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            _log(scope, status if ended else CLIENT_GONE)


def note_target(scope: Scope, body: object) -> None:
    """Remember what a request's body is about, for the line."""
    if isinstance(body, dict):
        named = next((body[name] for name in ("model", "name", "source") if isinstance(body.get(name), str)), "")
        scope.setdefault("state", {})["target"] = named


def note_failure(scope: Scope, code: str) -> None:
    """Remember that an answer that began well told of an error in its middle."""
    scope.setdefault("state", {})["failure"] = code


def _is_audited(method: str, path: str) -> bool:
    return method == "DELETE" or (not is_read(method) and scope_for(method, path) == "manage")


def _log(scope: Scope, status: int) -> None:
    state = scope.get("state", {})
    path_names = scope.get("path_params") or {}
    target = printable(str(state.get("target") or next(iter(path_names.values()), "")))
    key = key_in(scope)
    who = "-" if key is ANYBODY else key.name
    client = str(scope["client"][0]) if scope.get("client") else ""
    failure = state.get("failure", "")
    outcome = "error" if failure or status >= _FAILED else "ok"
    action = f"{printable(scope['method'])} {printable(scope['path'])}"
    fields = {
        "key": who,
        "client": client,
        "action": action,
        "model": target,
        "outcome": outcome,
        "status": status,
        "request_id": state.get("request_id", ""),
    }
    if failure:
        fields["code"] = failure
    ending = f"{outcome} {status}" + (f" {failure}" if failure else "")
    logger.info("%s at %s: %s %s: %s", who, client, action, target, ending, extra={"fields": fields})
