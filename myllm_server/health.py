"""Whether the server and its models are well."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from myllm_core.runtime.runtime import Runtime
from myllm_server import examples
from myllm_server.errors import json_response
from myllm_server.strict import StrictRoute

router = APIRouter(tags=["server"], route_class=StrictRoute)

_FRESH = 1.0  # seconds that a finding holds


class Health:
    """Asks the models, at most once a second however many want to know."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._check: asyncio.Task[bool] | None = None
        self._found_at = 0.0

    async def well(self) -> bool:
        """Whether every loaded model answers."""
        now = asyncio.get_running_loop().time()
        if self._check is None or (self._check.done() and now - self._found_at >= _FRESH):
            self._check = asyncio.create_task(self._ask())
        return await asyncio.shield(self._check)  # one who asks may go, others wait for the same

    async def _ask(self) -> bool:
        dead = await self._runtime.dead_models()
        self._found_at = asyncio.get_running_loop().time()
        return not dead


@router.get("/health", responses=examples.HEALTH)
async def health(request: Request) -> Response:
    """Say whether the server and its models are well. Open to everybody, so it says only that."""
    if await request.app.state.health.well():
        return json_response({"status": "ok"})
    return json_response({"status": "unhealthy"}, 503, {"retry-after": "5"})
