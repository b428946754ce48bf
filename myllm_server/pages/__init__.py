"""The pages for people: the chat at ``/`` and the API's description at ``/docs``.

What is written in a page is allowed by its hash, and nothing else: no other script, style or address.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response

_STATIC = "/static-offline-docs"  # where fastapi-offline puts Swagger's files
_CLOSED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def add_pages(app: FastAPI) -> None:
    """Add ``/`` and ``/docs``."""

    @app.get("/", include_in_schema=False)
    async def chat(request: Request) -> Response:
        return chat_page()

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _docs_page(app)


def chat_page(status: int = 200) -> Response:
    """The chat page. With 401 it is the same: it asks for the key."""
    html, policy = _chat()
    headers = {"content-security-policy": policy, "cache-control": "no-cache"}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(html, status, headers, media_type="text/html")


@cache
def _chat() -> tuple[str, str]:
    html = files(__package__).joinpath("chat.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(html, 'script')}; style-src {_hashes(html, 'style')}; "
        f"connect-src 'self'; img-src data:; require-trusted-types-for 'script'; {_CLOSED}"
    )
    return html, policy


def _docs_page(app: FastAPI) -> Response:
    html = bytes(
        get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=f"{app.title}: API",
            swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{_STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{_STATIC}/favicon.png",
            swagger_ui_parameters=app.swagger_ui_parameters,
        ).body
    ).decode()
    policy = (
        f"default-src 'none'; script-src 'self' {_hashes(html, 'script')}; style-src 'self' 'unsafe-inline'; "
        f"connect-src 'self'; img-src 'self' data:; {_CLOSED}"
    )
    return Response(html, headers={"content-security-policy": policy}, media_type="text/html")


def _hashes(html: str, tag: str) -> str:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
