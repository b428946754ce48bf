"""What the plugin adds to the server."""

import asyncio

from fastapi import APIRouter, Request

from myllm_core.errors import MyllmError
from myllm_team import ENTRIES

router = APIRouter(prefix="/team", tags=["team"])


@router.get("/models")
async def team_models(request: Request) -> dict[str, list[dict[str, object]]]:
    """List the team's names, and whether each is installed."""
    store = request.app.state.runtime.models
    return {"models": await asyncio.to_thread(lambda: [_entry(store, entry) for entry in ENTRIES])}


def _entry(store, entry):
    try:
        installed = store.get(entry.name).name == entry.name
    except MyllmError:
        installed = False
    return {"name": entry.name, "description": entry.description, "installed": installed}
