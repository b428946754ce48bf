"""``/ollama``: chats, generations, vectors and models as Ollama's clients ask for them. Nothing of a chat is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import PlainTextResponse, Response

from myllm_core.engine import TokenEngine
from myllm_core.errors import ContextLengthError, MyllmError
from myllm_core.runtime.runtime import Runtime
from myllm_core.types import Embeddings, Event, Message
from myllm_server.errors import HttpError, json_bytes, json_response
from myllm_server.keys import key_of
from myllm_server.lenient import check_supported, ignored
from myllm_server.ollama import examples, models, shapes
from myllm_server.ollama.frames import NDJSON, ChatLines, GenerateLines
from myllm_server.ollama.pulling import PullLines, finished, pulled
from myllm_server.ollama.schemas import (
    ChatBody,
    CopyBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    NamedBody,
    PullBody,
    conversation,
    options_for_embedding,
    pictures,
    refuse_dimensions,
)
from myllm_server.state import client_of, engine_header, runtime_of, settings_of
from myllm_server.stream import EventStream, attended, collected
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/ollama", tags=["ollama"], route_class=StrictRoute)

VERSION = "0.13.0"
"""The version of Ollama whose API this is: clients compare it with what they need."""

_RUNNING = "Ollama is running"  # the words that some clients look for


@router.get("", include_in_schema=False)
@router.get("/", responses=examples.ROOT)
async def root() -> Response:
    """Say that the server is there."""
    return PlainTextResponse(_RUNNING)


@router.get("/api/version", responses=examples.VERSION)
async def version() -> Response:
    """Say which version of Ollama's API this is."""
    return json_response({"version": VERSION})


@router.post("/api/chat", responses=examples.CHAT)
async def chat(request: Request, body: Annotated[ChatBody, Body(openapi_examples=examples.CHAT_BODIES)]) -> Response:
    """Answer a conversation, in lines of JSON unless `stream` is false.

    Without messages the model is loaded, or unloaded when `keep_alive` is 0. Fields that Ollama defines are honoured or
    refused; others are ignored and named in the header `x-myllm-ignored`.
    """
    began, options = time.perf_counter(), body.core_options()
    if not body.messages:
        return await _loaded(request, body, {"message": {"role": "assistant", "content": ""}}, began)
    events = runtime_of(request).chat(
        body.model,
        conversation(body.messages),
        options=options,
        tools=body.core_tools(),
        load_options=_loading(request, body.load_options()),
        keep_alive=body.keep_alive,
        client=client_of(request),
    )
    if body.streams:
        lines = ChatLines(body.model, began)
        return EventStream(events, lines, settings_of(request).ping_interval, _headers(request, body))
    return await _whole(request, body, events, began)


@router.post("/api/generate", responses=examples.GENERATE)
async def generate(
    request: Request, body: Annotated[GenerateBody, Body(openapi_examples=examples.GENERATE_BODIES)]
) -> Response:
    """Answer a prompt, or continue it as it is with `raw`, in lines of JSON unless `stream` is false.

    Without a prompt the model is loaded, or unloaded when `keep_alive` is 0.
    """
    began, options = time.perf_counter(), body.core_options()
    body.check_raw()
    if not body.prompt and not body.images:
        return await _loaded(request, body, {"response": ""}, began)
    runtime, client, load = runtime_of(request), client_of(request), _loading(request, body.load_options())
    if body.raw:
        events = runtime.generate(
            body.model, body.prompt or "", options=options, load_options=load, keep_alive=body.keep_alive, client=client
        )
    else:
        system = [Message("system", body.system)] if body.system else []
        said = [*system, Message("user", body.prompt or "", images=pictures(body.images, "images"))]
        events = runtime.chat(
            body.model, said, options=options, load_options=load, keep_alive=body.keep_alive, client=client
        )
    if body.streams:
        lines = GenerateLines(body.model, began)
        return EventStream(events, lines, settings_of(request).ping_interval, _headers(request, body))
    return await _whole(request, body, events, began)


def _headers(request: Request, body: ChatBody | GenerateBody | EmbedBody | EmbeddingsBody) -> dict[str, str]:
    """What was ignored, and the engine, which this dialect's answers have no field for."""
    return ignored(body) | engine_header(request, body.model)


def _loading(request: Request, options: dict[str, Any]) -> dict[str, Any]:
    """What a model must be loaded with. Raises ``HttpError`` for one who may not say so: it is the same for all."""
    if options and not key_of(request).may("manage"):
        message = "only a key with the scope manage may say how a model is loaded, such as num_ctx; leave it out"
        raise HttpError(403, "scope_missing", message, param="options")
    return options


async def _whole(
    request: Request, body: ChatBody | GenerateBody, events: AsyncGenerator[Event, None], began: float
) -> Response:
    told, finish = await attended(request.receive, collected(events))
    reply = shapes.Reply.of(told, finish)
    said: dict[str, Any] = {"message": reply.message()} if isinstance(body, ChatBody) else reply.response()
    if body.logprobs:
        said["logprobs"] = shapes.logprobs(reply.positions)
    ending = shapes.ending(finish, time.perf_counter() - began)
    about = {"model": body.model, "created_at": shapes.now()}
    return json_response({**about, **said, **ending}, headers=_headers(request, body))


async def _loaded(request: Request, body: ChatBody | GenerateBody, said: dict[str, Any], began: float) -> Response:
    """Load a model, or unload it, for who sent nothing to answer."""
    runtime = runtime_of(request)
    if body.keep_alive == 0:
        await runtime.unload(body.model)
    else:
        await attended(
            request.receive,
            runtime.load(body.model, load_options=_loading(request, body.load_options()), keep_alive=body.keep_alive),
        )
    reason = "unload" if body.keep_alive == 0 else "load"
    seconds = {"total_duration": int((time.perf_counter() - began) * 1e9)}
    about = {"model": body.model, "created_at": shapes.now(), **said, "done": True, "done_reason": reason, **seconds}
    kind = NDJSON if body.streams else "application/json"
    return Response(json_bytes(about) + b"\n", headers=ignored(body), media_type=kind)


@router.post("/api/embed", responses=examples.EMBED)
async def embed(request: Request, body: Annotated[EmbedBody, Body(openapi_examples=examples.EMBED_BODIES)]) -> Response:
    """Make a vector of each text."""
    began = time.perf_counter()
    check_supported(body)
    texts = [body.input] if isinstance(body.input, str) else body.input
    runtime, load = runtime_of(request), _loading(request, options_for_embedding(body.options))
    if not any(texts):  # as the dialect has it: nothing to embed loads the model
        await attended(request.receive, runtime.load(body.model, load_options=load, keep_alive=body.keep_alive))
        made = Embeddings([])
    else:
        made = await attended(request.receive, _embedded(runtime, body, texts, load))
        refuse_dimensions(body.dimensions, len(made.vectors[0]))
    answer = {
        "model": body.model,
        "embeddings": made.vectors,
        "total_duration": int((time.perf_counter() - began) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": made.prompt_tokens,
    }
    return json_response(answer, headers=_headers(request, body))


async def _embedded(runtime: Runtime, body: EmbedBody, texts: list[str], load: dict[str, Any]) -> Embeddings:
    """The vectors; with ``truncate`` each text that is too long is cut until it fits."""
    texts = list(texts)
    while True:
        try:
            return await runtime.embed(body.model, texts, load_options=load, keep_alive=body.keep_alive)
        except ContextLengthError as error:
            index, size, has = (error.data.get(name) for name in ("input", "context_size", "prompt_tokens"))
            if not body.truncate or not isinstance(index, int) or not isinstance(size, int) or not isinstance(has, int):
                raise
            texts[index] = await _cut(runtime, body.model, texts[index], max(1, has - size))


async def _cut(runtime: Runtime, model: str, text: str, tokens: int) -> str:
    """The text without its last tokens."""
    whole = await runtime.tokenize(model, text)
    return await runtime.detokenize(model, whole[: max(0, len(whole) - tokens)])


@router.post("/api/embeddings", responses=examples.EMBEDDINGS)
async def embeddings(
    request: Request, body: Annotated[EmbeddingsBody, Body(openapi_examples=examples.EMBEDDINGS_BODIES)]
) -> Response:
    """Make a vector of one text, as older clients ask for it."""
    check_supported(body)
    runtime, load = runtime_of(request), _loading(request, options_for_embedding(body.options))
    vector: list[float] = []
    if body.prompt:
        made = await attended(
            request.receive, runtime.embed(body.model, [body.prompt], load_options=load, keep_alive=body.keep_alive)
        )
        vector = made.vectors[0]
    else:
        await attended(request.receive, runtime.load(body.model, load_options=load, keep_alive=body.keep_alive))
    return json_response({"embedding": vector}, headers=_headers(request, body))


@router.get("/api/tags", responses=examples.TAGS)
async def tags(request: Request) -> Response:
    """List the installed models."""
    installed = await asyncio.to_thread(runtime_of(request).models.list_models)
    return json_response({"models": [models.entry(model) for model in installed]})


@router.get("/api/ps", responses=examples.PS)
async def ps(request: Request) -> Response:
    """List the loaded models."""
    runtime = runtime_of(request)
    installed = {model.name: model for model in await asyncio.to_thread(runtime.models.list_models)}
    shown = [(installed[loaded.name], loaded) for loaded in runtime.loaded() if loaded.name in installed]
    return json_response({"models": [models.loaded_entry(model, loaded) for model, loaded in shown]})


@router.post("/api/show", responses=examples.SHOW)
async def show(request: Request, body: Annotated[NamedBody, Body(openapi_examples=examples.SHOW_BODIES)]) -> Response:
    """Show an installed model."""
    check_supported(body)
    runtime = runtime_of(request)
    sees = {loaded.name: "vision" in loaded.capabilities for loaded in runtime.loaded()}
    about = await asyncio.to_thread(_shown, runtime, body.model, sees)
    return json_response(about, headers=ignored(body))


def _shown(runtime: Runtime, name: str, loaded: dict[str, bool]) -> dict[str, Any]:
    model = runtime.models.get(name)
    sees = loaded.get(model.name)
    try:
        engine = runtime.plugins.engine(runtime.engine_of(model.name))
    except MyllmError:  # nothing here runs it
        return models.shown(model, calls_tools=False, sees=sees)
    return models.shown(model, calls_tools=issubclass(engine, TokenEngine), sees=sees)


@router.post("/api/pull", responses=examples.PULL)
async def pull(request: Request, body: Annotated[PullBody, Body(openapi_examples=examples.PULL_BODIES)]) -> Response:
    """Install a model, and say how that goes on in lines of JSON unless `stream` is false.

    A client that goes away stops it; the next try goes on from there.
    """
    check_supported(body)
    lines, headers = pulled(runtime_of(request), body.reference()), ignored(body)
    if body.stream is not False:
        return EventStream(lines, PullLines(), settings_of(request).ping_interval, headers)
    await attended(request.receive, finished(lines))
    return json_response({"status": "success"}, headers=headers)


@router.post("/api/copy", responses=examples.DONE, response_class=Response)
async def copy(request: Request, body: Annotated[CopyBody, Body(openapi_examples=examples.COPY_BODIES)]) -> Response:
    """Install a model under a second name; the weights are on the disk once."""
    store = runtime_of(request).models
    await asyncio.to_thread(store.copy, body.source, body.destination)
    return Response(headers=ignored(body))


@router.delete("/api/delete", responses=examples.DONE, response_class=Response)
async def delete(
    request: Request, body: Annotated[NamedBody, Body(openapi_examples=examples.DELETE_BODIES)]
) -> Response:
    """Delete an installed model, when its running requests have ended."""
    runtime = runtime_of(request)
    model = await asyncio.to_thread(runtime.models.get, body.model)
    await runtime.unload(model.name)
    await asyncio.to_thread(runtime.models.remove, model.name)
    return Response(headers=ignored(body))
