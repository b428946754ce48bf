"""The pages for people: the chat at ``/`` and the API's description at ``/docs``.

The script that is written in a page is allowed by its hash, and no other; ``/docs`` adds Swagger's, which it fetches
with the key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_LOADS = {
    # a script that the page's own has added is allowed as that is; Swagger sets styles as it likes
    "docs": "script-src {script} 'strict-dynamic'; style-src 'unsafe-inline' blob:; img-src 'self' data:",
    "chat": "script-src {script}; style-src {style}; img-src data:; require-trusted-types-for 'script'",
}
PAGES = {"/": "chat", "/docs": "docs"}
"""Paths of the pages that ask for the key themselves where one is needed."""


def add_pages(app: FastAPI) -> None:
    """Add ``/`` and ``/docs``."""

    @app.get("/", include_in_schema=False)
    async def chat() -> Response:
        return page("/")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return page("/docs")


def page(path: str, status: int = 200) -> Response:
    """The page at ``path``. With 401 it is the same: it asks for the key."""
    html, policy = _read(PAGES[path])
    headers = {"content-security-policy": policy, "cache-control": "no-cache"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(html, status, headers, media_type="text/html")


@cache
def _read(name: str) -> tuple[str, str]:
    html = files(__package__).joinpath(f"{name}.html").read_text(encoding="utf-8")
    loads = _LOADS[name].format(script=_hash(html, "script"), style=_hash(html, "style"))
    return html, f"default-src 'none'; {loads}; connect-src 'self'; {_CLOSED}"


def _hash(html: str, tag: str) -> str:
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
