"""The installed models: listing, loading, unloading, and what is loaded now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from starlette.responses import Response

from myllm_core.models.manifest import Model
from myllm_server import examples
from myllm_server.errors import json_response
from myllm_server.schemas import LoadBody, NoFields
from myllm_server.state import runtime_of
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/api", tags=["models"], route_class=StrictRoute)

Name = Annotated[
    str, Path(max_length=200, description="as `myllm list` shows it", examples=["smollm2"])
]  # what is a name, the model store decides
_Nothing = Annotated[NoFields | None, Body(description="nothing to say: leave it out, or send `{}`")]


@router.get("/models", responses=examples.MODELS)
async def list_models(request: Request) -> Response:
    """List the installed models."""
    runtime = runtime_of(request)
    models = await asyncio.to_thread(runtime.models.list_models)
    loaded = {entry.name for entry in runtime.loaded()}
    return json_response({"models": [_entry(model, model.name in loaded) for model in models]})


@router.get("/models/{name}", responses=examples.MODEL)
async def show_model(request: Request, name: Name) -> Response:
    """Show one installed model."""
    runtime = runtime_of(request)
    model = await asyncio.to_thread(runtime.models.get, name)
    loaded = any(entry.name == model.name for entry in runtime.loaded())
    return json_response(_entry(model, loaded))


@router.get("/models/{name}/explain", responses=examples.EXPLAINED)
async def explain_model(request: Request, name: Name) -> Response:
    """Say which engine runs a model and why, and what every other one says of it."""
    return json_response(asdict(await asyncio.to_thread(runtime_of(request).explain, name)))


@router.post("/models/{name}/load", responses=examples.LOADED)
async def load_model(
    request: Request, name: Name, body: Annotated[LoadBody | None, Body(openapi_examples=examples.LOAD_BODIES)] = None
) -> Response:
    """Load a model before it is needed; answers when it is loaded. `keep_alive` says how long it stays without use."""
    loaded = await runtime_of(request).load(name, keep_alive=body.keep_alive if body else None)
    return json_response({**asdict(loaded), "status": "loaded"})


@router.post("/models/{name}/unload", responses=examples.UNLOADED)
async def unload_model(request: Request, name: Name, body: _Nothing = None) -> Response:
    """Unload a model when its running requests have ended; one that isn't loaded stays so."""
    runtime = runtime_of(request)
    model = await asyncio.to_thread(runtime.models.get, name)
    await runtime.unload(model.name)
    return json_response({"name": model.name, "status": "available"})


@router.get("/ps", responses=examples.PS)
async def list_loaded(request: Request) -> Response:
    """List the loaded models, with what each is doing and the memory that it takes in bytes."""
    return json_response({"models": [asdict(entry) for entry in runtime_of(request).loaded()]})


def _entry(model: Model, loaded: bool) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": manifest.name,
        "family": manifest.family,
        "quantization": manifest.quantization,
        "context_size": manifest.context_size,
        "size_bytes": manifest.size,
        "status": "loaded" if loaded else "available",
        "parameters": manifest.parameters,
        "format": manifest.format,
        "licence": manifest.licence,
        "source": manifest.source,
    }
