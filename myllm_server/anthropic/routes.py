"""``/v1/messages`` as Anthropic's clients ask for it, and ``/v1/models`` for them. Nothing is kept."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from pydantic import Field
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from myllm_core.models.manifest import Model
from myllm_server.anthropic import examples, shapes
from myllm_server.anthropic.errors import asks
from myllm_server.anthropic.frames import MessageEvents
from myllm_server.anthropic.schemas import CountBody, MessagesBody, conversation, tools_of
from myllm_server.errors import json_response
from myllm_server.lenient import Lenient, ignored, invalid
from myllm_server.state import client_of, engine_header, runtime_of, settings_of
from myllm_server.stream import EventStream, attended, collected
from myllm_server.strict import StrictRoute


class _SharedRoute(StrictRoute):
    """A route on a path that OpenAI's dialect has too: for clients that say whose they are."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match only what this dialect's clients send."""
        return super().matches(scope) if scope["type"] == "http" and asks(scope) else (Match.NONE, {})


router = APIRouter(prefix="/v1", tags=["anthropic"], route_class=StrictRoute)
shared = APIRouter(prefix="/v1", tags=["anthropic"], route_class=_SharedRoute, include_in_schema=False)

_Name = Annotated[str, Path(max_length=200, description="an installed model")]


@router.post("/messages", responses=examples.MESSAGE)
async def messages(
    request: Request, body: Annotated[MessagesBody, Body(openapi_examples=examples.MESSAGE_BODIES)]
) -> Response:
    """Answer a conversation.

    Fields that Anthropic defines are honoured or refused; others are ignored and named in the header `x-myllm-ignored`.
    """
    said, tools = conversation(body), tools_of(body)
    events = runtime_of(request).chat(
        body.model, said, options=body.options(), tools=tools, client=client_of(request, body.user)
    )
    identity = f"msg_{uuid.uuid4().hex}"
    headers = ignored(body) | engine_header(request, body.model)
    show_thinking = not (body.thinking and body.thinking.display == "omitted")
    if body.stream:
        frames = MessageEvents(identity, body.model, body.max_tokens, show_thinking)
        return EventStream(events, frames, settings_of(request).ping_interval, headers)
    reply, finish = await attended(request.receive, collected(events))
    answer = shapes.message(identity, body.model, finish.usage)
    answer["content"] = shapes.content(reply, show_thinking)
    answer["stop_reason"] = shapes.stop_reason(finish, body.max_tokens)
    answer["stop_sequence"] = finish.stop
    return json_response(answer, headers=headers)


@router.post("/messages/count_tokens", responses=examples.COUNT)
async def count_tokens(
    request: Request, body: Annotated[CountBody, Body(openapi_examples=examples.COUNT_BODIES)]
) -> Response:
    """Count the tokens that a conversation would be read as, without answering it."""
    said, tools = conversation(body), tools_of(body)
    prompt = await attended(
        request.receive, runtime_of(request).prompt(body.model, said, options=body.options(), tools=tools)
    )
    return json_response({"input_tokens": len(prompt.tokens)}, headers=ignored(body))


class _Page(Lenient):
    limit: int = Field(20, ge=1, le=1000, strict=False)
    after_id: str | None = None
    before_id: str | None = None


@shared.get("/models")
async def list_models(request: Request, page: Annotated[_Page, Query()]) -> Response:
    """List the installed models, by pages."""
    models = await asyncio.to_thread(runtime_of(request).models.list_models)
    names = [model.name for model in models]
    start, stop = 0, len(models)
    for cursor in filter(None, (page.after_id, page.before_id)):
        if cursor not in names:
            raise invalid("after_id" if cursor == page.after_id else "before_id", "there is no such model")
    if page.after_id:
        start = names.index(page.after_id) + 1
    if page.before_id:
        stop = names.index(page.before_id)
        start = max(start, stop - page.limit)
    shown = models[start : min(stop, start + page.limit)]
    more = start > 0 if page.before_id else start + len(shown) < len(models)
    return json_response(
        {
            "data": [_model(model) for model in shown],
            "has_more": more,
            "first_id": shown[0].name if shown else None,
            "last_id": shown[-1].name if shown else None,
        }
    )


@shared.get("/models/{model}")
async def show_model(request: Request, model: _Name) -> Response:
    """Show one installed model; another of its names finds it too."""
    return json_response(_model(await asyncio.to_thread(runtime_of(request).models.get, model)))


def _model(model: Model) -> dict[str, Any]:
    try:
        created = datetime.fromisoformat(model.manifest.pulled_at).astimezone(UTC)
    except ValueError:  # a manifest that was written by hand
        created = datetime.fromtimestamp(0, UTC)
    shown = created.isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": shown}
