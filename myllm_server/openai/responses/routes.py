"""``/v1/responses``: each response is a turn of a session, which later ones go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from starlette.responses import Response

from myllm_core.errors import NotFound, SessionConflict, SessionNotFound
from myllm_core.session_store import SessionStore, StoredMessage
from myllm_core.sessions.conversation import Branch
from myllm_server.errors import json_response
from myllm_server.lenient import ignored
from myllm_server.openai.responses import examples
from myllm_server.openai.responses.frames import ResponseEvents
from myllm_server.openai.responses.schemas import RESPONSE_ID, Item, ResponseBody
from myllm_server.openai.responses.shapes import (
    META,
    Parts,
    document,
    new_id,
    response_of,
    session_of,
    stored_document,
)
from myllm_server.state import client_of, engine_header, runtime_of, settings_of
from myllm_server.stream import EventStream, attended, collected
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=StrictRoute)

_Id = Annotated[str, Path(pattern=RESPONSE_ID, description="a kept response", examples=["resp_" + "0" * 48])]


@router.post("", responses=examples.RESPONSE)
async def respond(request: Request, body: Annotated[ResponseBody, Body(openapi_examples=examples.BODIES)]) -> Response:
    """Respond to an input, and keep the response, so that another can go on from it (`previous_response_id`).

    Fields that OpenAI defines are honoured or refused; others are ignored and named in the header `x-myllm-ignored`.
    """
    body.check()
    runtime = runtime_of(request)
    options, tools, told = body.options(), body.tools_to_core(), body.told()
    referred = await runtime.sessions(lambda store: _referred(store, body.references()))
    messages, kept = body.messages(referred), body.store is not False
    before = await runtime.sessions(lambda store: _before(store, body.previous_response_id))
    response_id = new_id(body.previous_response_id)
    place: dict[str, Any] = {}
    if kept:
        branch = Branch(before[-1].id if before else None, {META: told})
        place = {"session_id": session_of(response_id), "turn_key": response_id, "branch": branch}
    else:
        messages = [*(stored.message for stored in before), *messages]
    events = runtime.chat(
        body.model,
        messages,
        options=options,
        tools=tools,
        instructions=body.instructions or "",
        client=client_of(request, body.user or body.safety_identifier),
        **place,
    )
    frames = ResponseEvents(document(response_id, told))
    headers = ignored(body) | engine_header(request, body.model)
    if body.stream:
        return EventStream(events, frames, settings_of(request).ping_interval, headers)
    seen, finish = await attended(request.receive, collected(events))
    for event in seen:
        frames.event(event)
    return json_response(frames.finished(finish), headers=headers)


@router.get("/{response_id}", responses=examples.RESPONSE)
async def show_response(request: Request, response_id: _Id) -> Response:
    """Show a kept response."""
    turn = await runtime_of(request).sessions(lambda store: _turn(store, response_id))
    return json_response(stored_document(response_id, turn))


@router.delete("/{response_id}", responses=examples.DELETED)
async def delete_response(request: Request, response_id: _Id) -> Response:
    """Delete a kept response that no other one goes on from."""
    await runtime_of(request).sessions(lambda store: _delete(store, response_id))
    return json_response({"id": response_id, "object": "response", "deleted": True})


def _before(store: SessionStore, previous: str | None) -> list[StoredMessage]:
    """The conversation up to a response, its own reply last."""
    return store.path(session_of(previous), _turn(store, previous)[-1].id) if previous else []


def _referred(store: SessionStore, ids: Sequence[str]) -> dict[str, Item]:
    """The items of kept responses that have these ids. Raises ``NotFound``."""
    found: dict[str, Item] = {}
    items: dict[str, Item] = {}
    for item_id in ids:
        response_id, kept_as = response_of(item_id)
        if response_id and kept_as not in items:
            parts = Parts(response_id).all(_turn(store, response_id)[-1].message, "completed")
            items |= {part["id"]: Item.model_validate(part) for part in parts}
        if kept_as not in items:
            raise NotFound(f"there is no item {item_id[:80]!a}; items are kept with their responses")
        found[item_id] = items[kept_as]
    return found


def _turn(store: SessionStore, response_id: str) -> list[StoredMessage]:
    try:
        turn = store.turn(session_of(response_id), response_id)
    except SessionNotFound:
        turn = []
    if not turn:
        raise NotFound(f"there is no response {response_id}; it may have been deleted, or made with store: false")
    return turn


def _delete(store: SessionStore, response_id: str) -> None:
    """Take a turn out of its session, which is deleted with its only one.

    Stores never change what was appended, so the session is written anew; in between there is a copy of it.
    """
    _turn(store, response_id)
    session_id = session_of(response_id)
    whole = store.export(session_id)
    left = _without(whole, response_id)
    if not left["messages"]:
        store.delete(session_id)
        return
    copy = f"{session_id}.rewritten"
    store.import_(left, copy)
    store.delete(session_id)
    store.import_(left, session_id)
    store.delete(copy)


def _without(whole: dict[str, Any], key: str) -> dict[str, Any]:
    """An exported session without the turn of this key. Raises ``SessionConflict`` when others go on from it."""
    messages = whole["messages"]
    gone = {position for position, message in enumerate(messages) if message["key"] == key}
    if any(message["parent"] in gone and message["key"] != key for message in messages):
        raise SessionConflict("other responses go on from this one; delete these first")
    left = [position for position in range(len(messages)) if position not in gone]
    renumbered = {position: index for index, position in enumerate(left)}

    def moved(position: int | None) -> int | None:
        while position in gone:
            position = messages[position]["parent"]
        return None if position is None else renumbered[position]

    kept = [messages[position] | {"parent": moved(messages[position]["parent"])} for position in left]
    return whole | {"messages": kept, "tip": moved(whole["tip"])}
