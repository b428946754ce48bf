"""The native API: chat, generate, embeddings."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from starlette.responses import Response

from myllm_core.types import (
    Event,
    Finish,
    PositionLogprobs,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from myllm_server import examples
from myllm_server.errors import HttpError, json_bytes, json_response
from myllm_server.logprobs import logprob
from myllm_server.schemas import ChatBody, ChatQuery, EmbeddingsBody, GenerateBody
from myllm_server.state import client_of, runtime_of, settings_of
from myllm_server.stream import EventStream, attended, collected, comment
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/api", route_class=StrictRoute)

_IdempotencyKey = Annotated[
    str | None,
    Header(pattern=r"^[\x21-\x7e]{1,200}$", description="a request sent again with the same key is stored once"),
]


@router.post("/chat", tags=["chat"], responses=examples.CHAT)
async def chat(
    request: Request,
    body: Annotated[ChatBody, Body(openapi_examples=examples.CHAT_BODIES)],
    idempotency_key: _IdempotencyKey = None,
) -> Response:
    """Answer a conversation.

    Without `session_id` a new session begins, and its id is in the answer; with one, the session's messages come
    before those sent. A stream is `data: {"token", "done": false}` and ends with `"done": true`, or with `"error"`.
    """
    messages = [message.to_core() for message in body.messages]
    session_id = body.session_id or uuid.uuid4().hex
    events = runtime_of(request).chat(
        body.model,
        messages,
        options=body.options,
        tools=body.tools_to_core(),
        session_id=session_id,
        turn_key=idempotency_key,
        keep_alive=body.keep_alive,
        client=client_of(request, body.session_id),
    )
    about = {"session_id": session_id, "model": body.model}
    if body.stream:
        return _stream(request, events, about)
    reply, finish = await attended(request.receive, collected(events))
    return json_response({"message": _message(reply), **about, **_outcome(finish), **_logprobs(reply)})


@router.get("/chat", tags=["chat"], responses=examples.CHAT_STREAM, response_class=Response)
async def chat_by_query(request: Request, query: Annotated[ChatQuery, Query()]) -> Response:
    """Answer one message, for a browser's `EventSource`, which can only GET.

    It must accept `text/event-stream`. A reconnecting `EventSource` gets 204, which tells it to stop: sending the
    message again would be a second turn.
    """
    if "text/event-stream" not in request.headers.get("accept", ""):
        raise HttpError(406, "not_acceptable", "GET /api/chat is for EventSource (accept: text/event-stream); use POST")
    if "last-event-id" in request.headers:
        return Response(status_code=204)
    session_id = query.session_id or uuid.uuid4().hex
    events = runtime_of(request).chat(
        query.model, query.message, session_id=session_id, client=client_of(request, query.session_id)
    )
    return _stream(request, events, {"session_id": session_id, "model": query.model}, event_id=request.state.request_id)


@router.post("/generate", tags=["chat"], responses=examples.GENERATE)
async def generate(
    request: Request, body: Annotated[GenerateBody, Body(openapi_examples=examples.GENERATE_BODIES)]
) -> Response:
    """Continue a raw prompt, without chat template and session."""
    events = runtime_of(request).generate(
        body.model, body.prompt, options=body.options, keep_alive=body.keep_alive, client=client_of(request)
    )
    about = {"model": body.model}
    if body.stream:
        return _stream(request, events, about)
    reply, finish = await attended(request.receive, collected(events))
    return json_response({"text": _text(reply), **about, **_outcome(finish), **_logprobs(reply)})


@router.post("/embeddings", tags=["chat"], responses=examples.EMBEDDINGS)
async def embeddings(
    request: Request, body: Annotated[EmbeddingsBody, Body(openapi_examples=examples.EMBEDDINGS_BODIES)]
) -> Response:
    """Make vectors of texts: one vector for a string, a list of vectors for a list."""
    inputs = [body.input] if isinstance(body.input, str) else body.input
    runtime = runtime_of(request)
    engine = runtime.engine_of(body.model)
    made = await attended(request.receive, runtime.embed(body.model, inputs, keep_alive=body.keep_alive))
    vectors = made.vectors[0] if isinstance(body.input, str) else made.vectors
    usage = _usage(Usage(prompt_tokens=made.prompt_tokens))
    return json_response({"embeddings": vectors, "model": body.model, "usage": usage, "engine": engine})


def _stream(
    request: Request, events: AsyncGenerator[Event, None], about: dict[str, Any], event_id: str = ""
) -> EventStream[Event]:
    return EventStream(events, NativeFrames(about, event_id), settings_of(request).ping_interval)


class NativeFrames:
    """Server-Sent Events of the native API; ``about`` goes into the last one.

    Every frame but the last has ``token`` (empty when it tells something else) and ``"done": false``, so that
    a simple client can join the tokens. With ``event_id`` the first frame has it as its id.
    """

    content_type = b"text/event-stream; charset=utf-8"
    ping = b":\n\n"

    def __init__(self, about: dict[str, Any], event_id: str = "") -> None:
        self._about = about
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Event] = []
        self._prefix = f"id: {event_id}\n".encode() if event_id else b""

    def event(self, event: Event) -> bytes:
        """The frame of an event; of progress a comment."""
        if isinstance(event, TextDelta):
            return self._token(event)
        if isinstance(event, ReasoningDelta):
            self._reasoning.append(event.text)
            return self._frame({"token": "", "reasoning": event.text, "done": False})
        if isinstance(event, ToolCallDelta):
            self._calls.append(event)
            return self._frame({"token": "", "tool_call": asdict(event), "done": False})
        if isinstance(event, Finish):
            return self._last(event)
        return comment(event)

    def error(self, error: HttpError, request_id: str) -> bytes:
        """The last frame of a stream that failed."""
        about = {"full_text": "".join(self._texts)} if self._texts else {}
        return self._frame({**error.body(request_id), **self._about, **about, "done": True})

    def _token(self, event: TextDelta) -> bytes:
        self._texts.append(event.text)
        if event.logprobs or self._prefix:
            logprobs = {"logprobs": [_position(one) for one in event.logprobs]} if event.logprobs else {}
            return self._frame({"token": event.text, "done": False, **logprobs})
        return b'data: {"token":' + json_bytes(event.text) + b',"done":false}\n\n'

    def _last(self, finish: Finish) -> bytes:
        if finish.error:
            raise finish.error
        more: dict[str, Any] = {"reasoning": "".join(self._reasoning)} if self._reasoning else {}
        if self._calls:
            more["tool_calls"] = _tool_calls(self._calls)
        return self._frame({"done": True, **self._about, "full_text": "".join(self._texts), **more, **_outcome(finish)})

    def _frame(self, value: dict[str, Any]) -> bytes:
        prefix, self._prefix = self._prefix, b""
        return prefix + b"data: " + json_bytes(value) + b"\n\n"


def _text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def _message(events: list[Event]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _text(events)}
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    if reasoning:
        message["reasoning"] = reasoning
    calls = _tool_calls(events)
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_calls(events: list[Event]) -> list[dict[str, str]]:
    calls: dict[int, dict[str, str]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            call = calls.setdefault(event.index, {"id": "", "name": "", "arguments": ""})
            call["id"] = event.id or call["id"]
            call["name"] = event.name or call["name"]
            call["arguments"] += event.arguments
    return [calls[index] for index in sorted(calls)]


def _outcome(finish: Finish) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "usage": _usage(finish.usage),
        "finish_reason": finish.reason,
        "timings": asdict(finish.timings),
    }
    if finish.stop is not None:
        outcome["stop"] = finish.stop
    if finish.seed is not None:
        outcome["seed"] = finish.seed
    if finish.engine is not None:
        outcome["engine"] = finish.engine
    if finish.context is not None:
        outcome["context"] = asdict(finish.context)
    return outcome


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _logprobs(events: list[Event]) -> dict[str, Any]:
    positions = [_position(one) for event in events if isinstance(event, TextDelta) for one in event.logprobs]
    return {"logprobs": positions} if positions else {}


def _position(position: PositionLogprobs) -> dict[str, Any]:
    return {**logprob(position.chosen), "top": [logprob(one) for one in position.top]}
