"""``/v1/rerank``: documents by how well they answer a query, as Jina's and Cohere's clients ask for it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Body, Request
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from myllm_server.errors import json_response
from myllm_server.examples import answer, bodies
from myllm_server.lenient import Lenient, Unsupported, check_supported, ignored
from myllm_server.schemas import MAX_INPUTS, ModelName
from myllm_server.state import client_of, engine_header, runtime_of
from myllm_server.stream import attended
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictRoute)

_UNSUPPORTED: Unsupported = {
    "max_chunks_per_doc": (None,),
    "max_tokens_per_doc": (None,),
    "rank_fields": (None, [], ["text"]),
    "return_embeddings": (None, False),
}


def _text(value: object) -> object:
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("text", 'send a text that isn\'t empty, or {"text": "…"}')
    return value


_DOCUMENT = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    ]
}
_Text = Annotated[str, BeforeValidator(_text), WithJsonSchema(_DOCUMENT)]


class RerankBody(Lenient):
    """A query, and the documents to put in order."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED

    model: ModelName
    query: _Text = Field(json_schema_extra={"description": "what the documents are to be about"})
    documents: list[_Text] = Field(min_length=1, max_length=MAX_INPUTS - 1)
    top_n: int | None = Field(None, ge=1, description="only so many of the best (all)")
    return_documents: bool | None = Field(None, description="with their texts (false)")


_ASKED = {
    "model": "smollm2",
    "query": "Where do cats sleep?",
    "documents": ["The tides of the sea follow the moon.", "A cat sleeps on its mat."],
}
_FOUND = {
    "id": "rerank-1",
    "object": "list",
    "model": "smollm2",
    "scored_by": "embeddings",
    "results": [{"index": 1, "relevance_score": 0.87}, {"index": 0, "relevance_score": 0.41}],
    "usage": {"prompt_tokens": 24, "total_tokens": 24},
}


@router.post("/rerank", responses=answer("The documents, the likest first", _FOUND))
async def rerank(
    request: Request,
    body: Annotated[RerankBody, Body(openapi_examples=bodies(two=("Two documents", _ASKED)))],
) -> Response:
    """Put documents in order, the best first: by a reranker's own scores, else by the cosine of embeddings, -1 to 1."""
    check_supported(body)
    work = runtime_of(request).rerank(body.model, body.query, body.documents, client=client_of(request))
    made = await attended(request.receive, work)
    order = sorted(range(len(made.scores)), key=lambda index: -made.scores[index])[: body.top_n]
    found = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "list",
        "model": body.model,
        "scored_by": made.by,
        "results": [_result(index, made.scores[index], body) for index in order],
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
    }
    return json_response(found, headers=ignored(body) | engine_header(request, body.model))


def _result(index: int, score: float, body: RerankBody) -> dict[str, Any]:
    document = {"document": {"text": body.documents[index]}} if body.return_documents else {}
    return {"index": index, "relevance_score": score, **document}
