"""Who may ask: the Host header, the Origin, the key. On every route and method, before a body is read.

A page in a browser can send requests to this machine. Host names stop a name that was rebound to a
loopback address, the Origin stops other pages, the key stops other people.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from myllm_core.errors import ConfigError
from myllm_core.keys import ApiKey
from myllm_core.settings import Settings
from myllm_server.body import refuse
from myllm_server.errors import HttpError
from myllm_server.guesses import Guesses
from myllm_server.headers import Headers
from myllm_server.keys import ANYBODY, KeyRing
from myllm_server.pages import PAGES, page
from myllm_server.scopes import is_read, scope_for

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_](?:[a-z0-9_.-]{0,252})))(?::\d{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?")
_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = (b"access-control-expose-headers", b"x-request-id, x-myllm-engine, x-myllm-ignored, retry-after")
_OPEN_PATH = "/health"
_ASK = {"www-authenticate": "Bearer"}
_NO_KEY = HttpError(
    401,
    "unauthorized",
    "this server wants a key: send the header authorization: Bearer KEY, or x-api-key: KEY",
    headers=_ASK,
)
_WRONG_KEY = HttpError(
    401, "unauthorized", "this key opens nothing here; it is mistyped or revoked (myllm keys list)", headers=_ASK
)
_SCOPE = HttpError(
    403, "scope_missing", "this needs a key with the scope manage; make one: myllm keys create NAME --scope manage"
)


class Guard:
    """ASGI middleware that lets through only what the settings allow."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing) -> None:
        self.app = app
        self.keys = keys
        self.guesses = Guesses(settings.wrong_keys)
        self.names = LOOPBACK_NAMES | {_bare(name) for name in (settings.host, *settings.allowed_hosts)}
        self.origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _collect(scope)
        if self.origins:
            send = _with_headers(send, [(b"vary", b"origin")])
        try:
            host = self._check_host(scope, headers)
            origin = self._check_origin(scope, headers, host)
        except HttpError as error:
            await refuse(error, scope, receive, send)
            return
        if origin:
            send = _with_headers(send, [(b"access-control-allow-origin", origin.encode("latin-1")), _EXPOSED])
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _preflight(headers, send)
                return
        problem = self._check_key(scope, headers)
        if problem is _NO_KEY and _wants_page(scope, headers):
            await page(scope["path"], problem.status)(scope, receive, send)
        elif problem:
            await refuse(problem, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check_host(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> str:
        given = headers.get(b"host", [])
        host = given[0].decode("latin-1").lower() if len(given) == 1 else ""
        match = _HOST.fullmatch(host)
        if not match:
            raise HttpError(400, "invalid_host", "send one Host header, such as localhost:8000")
        if b"transfer-encoding" in headers and b"content-length" in headers:
            raise HttpError(400, "invalid_request", "send content-length or transfer-encoding, not both")
        name = match["v6"] or match["name"]
        server = scope.get("server")  # the address that was connected to, when the server is bound to all
        if name not in self.names and not (server and _same_address(name, server[0])):
            raise HttpError(
                403, "host_not_allowed", f"this server doesn't go by the name {name[:60]}; add it to allowed_hosts"
            )
        return host

    def _check_origin(self, scope: Scope, headers: dict[bytes, list[bytes]], host: str) -> str:
        """The origin to grant CORS to; empty for none. Raises ``HttpError`` for one that isn't allowed."""
        given = [value.decode("latin-1") for value in headers.get(b"origin", [])]
        if given:
            if len(given) == 1 and given[0] in self.origins:
                return given[0]
            if len(given) == 1 and given[0] in (f"http://{host}", f"https://{host}"):
                return ""
            raise HttpError(403, "origin_not_allowed", "this origin may not call this server; see cors_origins")
        if _is_foreign(headers) and not (scope["method"] == "GET" and _is_page(headers)):
            raise HttpError(403, "origin_not_allowed", "another site may not call this server; see cors_origins")
        return ""

    def _check_key(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> HttpError | None:
        """Note whose request it is; what to say when nobody's key is with it, or one that doesn't open this."""
        if scope["path"] == _OPEN_PATH:
            return None
        holder: ApiKey | None = ANYBODY
        offered: list[bytes] = []
        if self.keys.wanted():
            offered = _offered(headers)
            holder = self.keys.find(offered)
            refusal = self.guesses.refusal(scope, holder) if offered else None
            if refusal is not None:
                return refusal
        if holder is None:
            return _WRONG_KEY if offered else _NO_KEY
        scope.setdefault("state", {})["key"] = holder
        return None if holder.may(scope_for(scope["method"], scope["path"])) else _SCOPE


def _offered(headers: dict[bytes, list[bytes]]) -> list[bytes]:
    offered = list(headers.get(b"x-api-key", []))
    for value in headers.get(b"authorization", []):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            offered.append(token.strip())
    return [key for key in offered if key]


def check_origins(settings: Settings) -> None:
    """Raise ``ConfigError`` for an entry of ``cors_origins`` that no browser would send."""
    for origin in settings.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"cors_origins: {origin!r} is no origin; write it as a browser does, such as http://localhost:3000"
            )


def is_loopback(host: str) -> bool:
    """Whether binding ``host`` is out of other machines' reach."""
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return _bare(host) == "localhost"


def _wants_page(scope: Scope, headers: dict[bytes, list[bytes]]) -> bool:
    """Whether somebody opens a page that asks for the key itself."""
    return scope["path"] in PAGES and is_read(scope["method"]) and b"text/html" in b"".join(headers.get(b"accept", []))


def _is_foreign(headers: dict[bytes, list[bytes]]) -> bool:
    """Whether a browser says that a page of another origin asks; one of another port is of the same site."""
    return any(site in (b"cross-site", b"same-site") for site in headers.get(b"sec-fetch-site", []))


def _is_page(headers: dict[bytes, list[bytes]]) -> bool:
    """Whether somebody followed a link: the answer is a page of its own, in no other's frame."""
    mode, into = (headers.get(name, [b""])[0] for name in (b"sec-fetch-mode", b"sec-fetch-dest"))
    return mode == b"navigate" and into in (b"", b"document")


def _bare(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]")


def _same_address(name: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(address)
    except ValueError:
        return False


def _collect(scope: Scope) -> dict[bytes, list[bytes]]:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name, []).append(value)
    return headers


def _with_headers(send: Send, added: Headers) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return adding


async def _preflight(headers: dict[bytes, list[bytes]], send: Send) -> None:
    answer = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
    if wanted := headers.get(b"access-control-request-headers"):
        answer.append((b"access-control-allow-headers", b", ".join(wanted)))
    if headers.get(b"access-control-request-private-network") == [b"true"]:
        answer.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
