"""A route that a plugin adds to the server."""

from fastapi import APIRouter

router = APIRouter(prefix="/echo")


@router.get("/ping")
def ping() -> dict[str, str]:
    """Say pong."""
    return {"ping": "pong"}
