"""The stored conversations: listing, reading, deleting. Chat makes and continues them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from myllm_core.session_store import Session, SessionStore, StoredMessage
from myllm_server import examples
from myllm_server.errors import json_response
from myllm_server.schemas import PageQuery
from myllm_server.state import runtime_of
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/api", tags=["sessions"], route_class=StrictRoute)

Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,128}$", examples=["my-first-session"])]


@router.get("/sessions", responses=examples.SESSIONS)
async def list_sessions(request: Request, page: Annotated[PageQuery, Query()]) -> Response:
    """List sessions, the last changed first; with `search` those that hold all its words, each with an excerpt."""

    def read(store: SessionStore) -> list[dict[str, Any]]:
        if page.search:
            found = store.search(page.search, limit=page.offset + page.limit)[page.offset :]
            return [{**_entry(session), "excerpt": excerpt} for session, excerpt in found]
        return [_entry(session) for session in store.list_sessions(limit=page.limit, offset=page.offset)]

    return json_response({"sessions": await runtime_of(request).sessions(read)})


@router.get("/sessions/{session_id}", responses=examples.SESSION)
async def show_session(request: Request, session_id: Id) -> Response:
    """Show a session and the messages of its current path."""

    def read(store: SessionStore) -> dict[str, Any]:
        messages = [_message(stored) for stored in store.path(session_id)]
        return {**_entry(store.get(session_id)), "messages": messages}

    return json_response(await runtime_of(request).sessions(read))


@router.delete("/sessions/{session_id}", responses=examples.SESSION_DELETED)
async def delete_session(request: Request, session_id: Id) -> Response:
    """Delete a session and all its messages."""
    await runtime_of(request).sessions(lambda store: store.delete(session_id))
    return json_response({"id": session_id, "status": "deleted"})


def _entry(session: Session) -> dict[str, Any]:
    entry = asdict(session)
    del entry["tip"]
    return entry


def _message(stored: StoredMessage) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": stored.id,
        "parent_id": stored.parent_id,
        "role": stored.message.role,
        "content": stored.message.content,
        "status": stored.status,
        "created_at": stored.created_at,
    }
    optional = {
        "reasoning": stored.message.reasoning,
        "tool_calls": [asdict(call) for call in stored.message.tool_calls],
        "tool_call_id": stored.message.tool_call_id,
        "meta": stored.meta,
    }
    return message | {name: value for name, value in optional.items() if value}
