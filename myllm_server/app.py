"""The FastAPI app: routers, what stands before them, and how failures are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.responses import Response
from starlette.routing import BaseRoute

from myllm_core import __version__
from myllm_core.errors import PluginError
from myllm_core.plugins import Plugins
from myllm_core.runtime.runtime import Runtime
from myllm_core.settings import Settings
from myllm_server import examples, models, native, sessions
from myllm_server.body import BodyReader
from myllm_server.errors import HANDLED, answer_error, json_bytes, json_response
from myllm_server.gate import Gate, GateKeeper
from myllm_server.guard import Guard, check_origins
from myllm_server.log import RequestLog
from myllm_server.openai import examples as openai_examples
from myllm_server.openai import routes as openai
from myllm_server.openai.errors import error_shape
from myllm_server.state import runtime_of
from myllm_server.strict import StrictRoute

logger = logging.getLogger("myllm.server")

_DESCRIPTION = """
Local models over HTTP. The examples below work as they stand once `smollm2` is installed (`myllm pull smollm2`).

Every answer carries `x-request-id`; every error is `{"error": {"code", "message", "request_id"}}`.
"""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

health_router = APIRouter(tags=["server"], route_class=StrictRoute)


@health_router.get("/health", responses=examples.HEALTH)
async def health(request: Request) -> Response:
    """Say whether the server and its models are well. Open to everybody, so it says only that."""
    dead = await runtime_of(request).dead_models()
    return json_response({"status": "unhealthy" if dead else "ok"}, 503 if dead else 200)


def create_app(
    runtime: Runtime,
    settings: Settings,
    plugins: Plugins,
    *,
    gate: Gate | None = None,
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The app over ``runtime``, which whoever opened it closes.

    ``gate`` lets the caller stop the app gracefully. ``settings.api_key`` empty means that no key is asked for.
    Raises ``ConfigError`` for settings that can't be served.
    """
    check_origins(settings)
    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="myllm",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        swagger_ui_parameters={"tryItOutEnabled": True, "defaultModelsExpandDepth": -1},
    )
    app.state.runtime = runtime
    app.state.settings = settings
    app.state.error_shapes = {"/v1/": error_shape}
    for router in (native.router, models.router, sessions.router, health_router):
        app.include_router(router, responses=examples.ERRORS)
    app.include_router(openai.router, responses=openai_examples.ERRORS)
    _include_plugins(app, plugins)
    for kind in HANDLED:
        app.add_exception_handler(kind, answer_error)
    # the last one added stands in front
    app.add_middleware(BodyReader, max_bytes=settings.max_body_bytes, timeout=settings.read_timeout)
    app.add_middleware(GateKeeper, gate=gate or Gate(settings.max_requests))
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestLog)
    return app


def _include_plugins(app: FastAPI, plugins: Plugins) -> None:
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


def _paths(routes: Sequence[BaseRoute]) -> set[str]:
    """The documented paths of ``routes``; fails for routes that would break ``/docs``."""
    document = get_openapi(title="", version="", routes=routes)
    json_bytes(document)
    return set(document["paths"])
