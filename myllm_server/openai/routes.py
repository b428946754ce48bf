"""``/v1``: models, chats, completions and embeddings as OpenAI's clients ask for them. Nothing is kept."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request
from starlette.responses import Response

from myllm_core.models.manifest import Model
from myllm_core.runtime.runtime import Runtime
from myllm_core.types import Event, Usage
from myllm_server.errors import HttpError, json_response
from myllm_server.lenient import ignored
from myllm_server.openai import examples, shapes
from myllm_server.openai.choices import Generation, read_all, together
from myllm_server.openai.frames import ChatChunks, CompletionChunks
from myllm_server.openai.schemas import ChatBody, CompletionBody, EmbeddingsBody
from myllm_server.state import client_of, engine_header, runtime_of, settings_of
from myllm_server.stream import EventStream, attended
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

_Name = Annotated[str, Path(max_length=200, description="an installed model", examples=["smollm2"])]


@router.get("/models", responses=examples.MODELS)
async def list_models(request: Request) -> Response:
    """List the installed models."""
    models = await asyncio.to_thread(runtime_of(request).models.list_models)
    return json_response({"object": "list", "data": [_model(model) for model in models]})


@router.get("/models/{model}", responses=examples.MODEL)
async def show_model(request: Request, model: _Name) -> Response:
    """Show one installed model; another of its names finds it too."""
    return json_response(_model(await asyncio.to_thread(runtime_of(request).models.get, model)))


@router.post("/chat/completions", responses=examples.CHAT)
async def chat_completions(
    request: Request, body: Annotated[ChatBody, Body(openapi_examples=examples.CHAT_BODIES)]
) -> Response:
    """Answer a conversation.

    Fields that OpenAI defines are honoured or refused; others are ignored and named in the header `x-myllm-ignored`.
    """
    messages, answers = body.to_core()
    runtime, client = runtime_of(request), client_of(request, body.asker)
    engine = runtime.engine_of(body.model)
    tools = body.tools_to_core()
    generations = [
        runtime.chat(body.model, messages, options=options, tools=tools, client=client) for options in answers
    ]
    if body.stream:
        return _stream(
            request,
            body,
            generations,
            ChatChunks(body.model, engine, len(generations), body.include_usage),
            len(answers),
        )
    choices, counts = await _whole(request, generations, len(answers))
    return _document(
        shapes.head("chatcmpl", "chat.completion", body.model, engine),
        [shapes.chat_choice(index, events, bool(body.logprobs)) for index, events in enumerate(choices)],
        counts,
        ignored(body),
    )


@router.post("/completions", responses=examples.COMPLETION)
async def completions(
    request: Request, body: Annotated[CompletionBody, Body(openapi_examples=examples.COMPLETION_BODIES)]
) -> Response:
    """Continue raw prompts, without a chat template: 16 tokens when `max_tokens` isn't given."""
    prompts, answers = body.to_core()
    runtime, client = runtime_of(request), client_of(request, body.asker)
    engine = runtime.engine_of(body.model)
    asked = [(prompt, options) for prompt in prompts for options in answers]
    generations = [runtime.generate(body.model, prompt, options=options, client=client) for prompt, options in asked]
    echoed = [await _as_text(runtime, body.model, prompt) if body.echo else "" for prompt, _ in asked]
    if body.stream:
        chunks = CompletionChunks(body.model, engine, echoed, body.include_usage)
        return _stream(request, body, generations, chunks, len(answers))
    choices, counts = await _whole(request, generations, len(answers))
    return _document(
        shapes.head("cmpl", "text_completion", body.model, engine),
        [
            shapes.completion_choice(index, events, echoed[index], body.logprobs is not None)
            for index, events in enumerate(choices)
        ],
        counts,
        ignored(body),
    )


@router.post("/embeddings", responses=examples.EMBEDDINGS)
async def embeddings(
    request: Request, body: Annotated[EmbeddingsBody, Body(openapi_examples=examples.EMBEDDINGS_BODIES)]
) -> Response:
    """Make vectors of texts."""
    runtime = runtime_of(request)
    texts = [await _as_text(runtime, body.model, text) for text in body.input]
    made = await attended(request.receive, runtime.embed(body.model, texts))
    length = len(made.vectors[0])
    if body.dimensions not in (None, length):
        raise HttpError(
            400, "unsupported", f"dimensions: this model's vectors have {length}; leave it out", param="dimensions"
        )
    packed = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if packed else vector}
        for index, vector in enumerate(made.vectors)
    ]
    counts = {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens}
    found = {"object": "list", "data": data, "model": body.model, "usage": counts}
    return json_response(found, headers=ignored(body) | engine_header(request, body.model))


async def _as_text(runtime: Runtime, model: str, given: str | list[int]) -> str:
    return given if isinstance(given, str) else await runtime.detokenize(model, given)


def _stream(
    request: Request,
    body: ChatBody | CompletionBody,
    generations: Sequence[Generation],
    chunks: ChatChunks | CompletionChunks,
    per_prompt: int,
) -> Response:
    events = together(generations, per_prompt)
    return EventStream(events, chunks, settings_of(request).ping_interval, ignored(body))


async def _whole(
    request: Request, generations: Sequence[Generation], per_prompt: int
) -> tuple[list[list[Event]], Usage]:
    choices, finish = await attended(request.receive, read_all(together(generations, per_prompt)))
    return choices, finish.usage


def _document(head: dict[str, Any], choices: list[dict[str, Any]], counts: Usage, headers: dict[str, str]) -> Response:
    return json_response({**head, "choices": choices, "usage": shapes.usage(counts)}, headers=headers)


def _model(model: Model) -> dict[str, Any]:
    try:
        created = int(datetime.fromisoformat(model.manifest.pulled_at).timestamp())
    except ValueError:  # a manifest that was written by hand
        created = 0
    return {"id": model.name, "object": "model", "created": created, "owned_by": "myllm"}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
