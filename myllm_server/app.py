"""The FastAPI app: routers, what stands before them, and how failures are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.routing import BaseRoute

from myllm_core import __version__
from myllm_core.errors import PluginError
from myllm_core.plugins import Plugins
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_server import examples, health, metrics, models, native, sessions, tokens
from myllm_server.anthropic import examples as anthropic_examples
from myllm_server.anthropic import routes as anthropic
from myllm_server.anthropic.errors import PREFIX as ANTHROPIC_PREFIX
from myllm_server.anthropic.errors import AnthropicRequests
from myllm_server.anthropic.errors import error_shape as anthropic_error_shape
from myllm_server.audit import Audit
from myllm_server.body import BodyReader
from myllm_server.document import complete_document
from myllm_server.errors import HANDLED, answer_error, json_bytes
from myllm_server.gate import Gate, GateKeeper
from myllm_server.guard import Guard, check_origins
from myllm_server.head import HeadAsGet
from myllm_server.keys import KeyRing
from myllm_server.limits import RateLimit
from myllm_server.log import RequestLog
from myllm_server.ollama import examples as ollama_examples
from myllm_server.ollama import routes as ollama
from myllm_server.ollama.errors import PREFIX as OLLAMA_PREFIX
from myllm_server.ollama.errors import error_shape as ollama_error_shape
from myllm_server.openai import examples as openai_examples
from myllm_server.openai import rerank
from myllm_server.openai import routes as openai
from myllm_server.openai.errors import error_shape
from myllm_server.openai.responses import routes as responses
from myllm_server.pages import add_pages
from myllm_server.quota import KeyLimits, Quotas

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger("myllm.server")

_DESCRIPTION = """
Local models over HTTP. The examples below work as they stand once `smollm2` is installed (`myllm pull smollm2`).

Every answer carries `x-request-id`; every error is `{"error": {"code", "message", "request_id"}}`, but under `/v1` as
OpenAI's or Anthropic's clients know it, and under `/ollama` as Ollama's do.
"""

_PAGES = {"/", "/docs", "/openapi.json"}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    runtime: Runtime,
    settings: Settings,
    plugins: Plugins,
    *,
    gate: Gate | None = None,
    tracer: Tracer | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The app over ``runtime``, which whoever opened it closes.

    ``gate`` lets the caller stop the app gracefully, ``tracer`` gets spans. A key is asked for when the settings or the
    key file have one. Raises ``ConfigError`` for settings that can't be served.
    """
    check_origins(settings)
    app: FastAPI = FastAPIOffline(
        docs_url=None,  # ours asks for the key; only Swagger's files are taken from there
        redoc_url=None,
        title="myllm",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own has what clients sent in it; ours (see tracing) doesn't
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    add_pages(app)
    app.state.runtime = runtime
    app.state.settings = settings
    app.state.health = health.Health(runtime)
    app.state.error_shapes = {
        "/v1/": error_shape,
        ANTHROPIC_PREFIX: anthropic_error_shape,
        OLLAMA_PREFIX: ollama_error_shape,
    }
    for router in (native.router, tokens.router, models.router, sessions.router, health.router, metrics.router):
        app.include_router(router, responses=examples.ERRORS)
    for router in (anthropic.shared, anthropic.router):  # before OpenAI's, which has some of their paths too
        app.include_router(router, responses=anthropic_examples.ERRORS)
    app.include_router(openai.router, responses=openai_examples.ERRORS)
    app.include_router(responses.router, responses=openai_examples.ERRORS)
    app.include_router(rerank.router, responses=openai_examples.ERRORS)
    app.include_router(ollama.router, responses=ollama_examples.ERRORS)
    complete_document(app)
    routes = metrics.Routes(_include_plugins(app, plugins) | _PAGES)
    for kind in HANDLED:
        app.add_exception_handler(kind, answer_error)
    gate = gate or Gate(settings.max_requests)
    app.state.metrics = metrics.Metrics(runtime, gate, routes)
    runtime.observers.append(app.state.metrics)
    quotas = Quotas(settings)
    runtime.observers.append(quotas)
    _add_middleware(app, settings, gate, quotas)
    if tracer is not None:
        from myllm_server.tracing import TraceRequests, Tracing

        runtime.observers.append(Tracing(tracer))
        app.add_middleware(TraceRequests, tracer=tracer, routes=routes)
    app.add_middleware(RequestLog, on_end=app.state.metrics.http_ended)
    return app


def _add_middleware(app: FastAPI, settings: Settings, gate: Gate, quotas: Quotas) -> None:
    # the last one added stands in front
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyReader, max_bytes=settings.max_body_bytes, timeout=settings.read_timeout)
    app.add_middleware(GateKeeper, gate=gate)
    if settings.rate_limit:
        app.add_middleware(RateLimit, per_minute=settings.rate_limit)
    app.add_middleware(KeyLimits, quotas=quotas)
    app.add_middleware(Guard, settings=settings, keys=KeyRing(settings))
    app.add_middleware(Audit)
    app.add_middleware(AnthropicRequests)


def _include_plugins(app: FastAPI, plugins: Plugins) -> set[str]:
    """Add the routes of plugins; gives the paths of all routes."""
    taken = set(_paths(app.routes))
    routers: list[Any] = plugins.routes()
    for router in routers:
        try:
            paths = _paths(router.routes)
            if clash := sorted(taken & paths):
                raise PluginError(f"the path {clash[0]} is taken")
            app.include_router(router)
        except Exception as error:  # noqa: BLE001 - a stranger's router may be anything
            logger.warning("a plugin's routes can't be used: %s: %s", type(error).__name__, error)
        else:
            taken |= paths
    return taken


def _paths(routes: Sequence[BaseRoute]) -> set[str]:
    """The documented paths of ``routes``; fails for routes that would break ``/docs``."""
    document = get_openapi(title="", version="", routes=routes)
    json_bytes(document)
    return set(document["paths"])
