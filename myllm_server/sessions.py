"""The stored conversations: listing, reading, renaming, copying, moving, deleting. Chat makes and continues them."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from starlette.responses import Response

from myllm_core.images import write_images
from myllm_core.session_store import Session, SessionStore, StoredMessage
from myllm_core.sessions.fork import fork_session, import_document
from myllm_server import examples
from myllm_server.errors import json_response
from myllm_server.schemas import ForkBody, ImportQuery, PageQuery, SessionChange
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


@router.patch("/sessions/{session_id}", responses=examples.SESSION_ENTRY)
async def change_session(
    request: Request, session_id: Id, body: Annotated[SessionChange, Body(openapi_examples=examples.CHANGE_BODIES)]
) -> Response:
    """Give a session another title, or another model to go on with."""

    def change(store: SessionStore) -> Session:
        return store.update(session_id, title=body.title, model=body.model)

    return json_response(_entry(await runtime_of(request).sessions(change)))


@router.post("/sessions/{session_id}/fork", responses=examples.SESSION_ENTRY)
async def copy_session(
    request: Request,
    session_id: Id,
    body: Annotated[ForkBody | None, Body(openapi_examples=examples.FORK_BODIES)] = None,
) -> Response:
    """Copy a session, to go on from there another way: after message `at` of its path, or at its end."""
    asked = body or ForkBody.model_validate({})
    target = asked.session_id or uuid.uuid4().hex
    forked = await runtime_of(request).sessions(lambda store: fork_session(store, session_id, target, asked.at))
    return json_response(_entry(forked))


@router.get("/sessions/{session_id}/export", responses=examples.SESSION_DOCUMENT)
async def export_session(request: Request, session_id: Id) -> Response:
    """Write a session with all its branches as one document, which `import` reads, here or elsewhere."""
    return json_response(await runtime_of(request).sessions(lambda store: store.export(session_id)))


@router.post("/sessions/import", responses=examples.SESSION_ENTRY)
async def import_session(
    request: Request,
    query: Annotated[ImportQuery, Query()],
    document: Annotated[dict[str, Any], Body(description="what `export` wrote")],
) -> Response:
    """Read a session that `export` wrote, under its own id or another."""
    imported = await runtime_of(request).sessions(lambda store: import_document(store, document, query.session_id))
    return json_response(_entry(imported))


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
        "images": write_images(stored.message.images),
        "meta": stored.meta,
    }
    return message | {name: value for name, value in optional.items() if value}
