"""What a model reads: tokens of texts, texts of tokens, and prompts of conversations. None of it takes a turn."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import Field
from starlette.responses import Response

from myllm_core.options import Options
from myllm_core.types import Prompt, Tool, Tools
from myllm_server import examples, schemas
from myllm_server.errors import HttpError, json_response
from myllm_server.state import runtime_of
from myllm_server.stream import attended
from myllm_server.strict import StrictRoute

router = APIRouter(prefix="/api", tags=["tokens"], route_class=StrictRoute)

_MODEL = "smollm2"
_TALK = [{"role": "user", "content": "What is the capital of France?"}]
_PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
_TOKENS = [19556, 28, 905, 17]


class TokenizeBody(schemas.Body):
    """A text to cut into tokens."""

    model: schemas.ModelName
    text: str
    special: bool = Field(False, description="read the texts of control tokens as such")
    keep_alive: schemas.KeepAlive = None


class DetokenizeBody(schemas.Body):
    """Tokens to put together."""

    model: schemas.ModelName
    tokens: list[int] = Field(max_length=2**20)
    keep_alive: schemas.KeepAlive = None


class PromptBody(schemas.Body):
    """A conversation, or a raw prompt, that could be sent to ``chat`` or ``generate``."""

    model: schemas.ModelName
    messages: list[schemas.ChatMessage] | None = Field(None, min_length=1)
    prompt: str | None = None
    tools: list[schemas.ToolSpec] = Field([], description="as in `chat`")
    options: Options = Field(Options.model_validate({}), description="as in `chat`")
    keep_alive: schemas.KeepAlive = None


@router.post(
    "/tokenize",
    responses=examples.answer("The tokens", {"model": _MODEL, "tokens": _TOKENS, "count": 4}),
)
async def tokenize(
    request: Request,
    body: Annotated[
        TokenizeBody,
        Body(openapi_examples=examples.bodies(one=("A text", {"model": _MODEL, "text": "Hello, world!"}))),
    ],
) -> Response:
    """Cut a text into tokens, without any that begin or end a prompt.

    The text of a control token is plain text unless `special` is true.
    """
    asked = runtime_of(request).tokenize(body.model, body.text, special=body.special, keep_alive=body.keep_alive)
    tokens = await attended(request.receive, asked)
    return json_response({"model": body.model, "tokens": tokens, "count": len(tokens)})


@router.post("/detokenize", responses=examples.answer("The text", {"model": _MODEL, "text": "Hello, world!"}))
async def detokenize(
    request: Request,
    body: Annotated[
        DetokenizeBody, Body(openapi_examples=examples.bodies(one=("Tokens", {"model": _MODEL, "tokens": _TOKENS})))
    ],
) -> Response:
    """Put tokens together again; control tokens have no text."""
    asked = runtime_of(request).detokenize(body.model, body.tokens, keep_alive=body.keep_alive)
    return json_response({"model": body.model, "text": await attended(request.receive, asked)})


_PROMPT_BODIES = examples.bodies(
    chat=("A conversation", {"model": _MODEL, "messages": _TALK}),
    raw=("A raw prompt", {"model": _MODEL, "prompt": "Once upon a time"}),
)


@router.post(
    "/count",
    responses=examples.answer("The count", {"model": _MODEL, "prompt_tokens": 36, "context_size": 8192, "fits": True}),
)
async def count(request: Request, body: Annotated[PromptBody, Body(openapi_examples=_PROMPT_BODIES)]) -> Response:
    """Count the tokens of a prompt: what `usage.prompt_tokens` would be, and whether it fits the context."""
    prompt = await _prompt(request, body)
    size = len(prompt.tokens)
    about = {"prompt_tokens": size, "context_size": prompt.context_size, "fits": size < prompt.context_size}
    return json_response({"model": body.model, **about})


@router.post(
    "/apply-template",
    responses=examples.answer("The prompt", {"model": _MODEL, "prompt": _PROMPT, "tokens": _TOKENS}),
)
async def apply_template(
    request: Request, body: Annotated[PromptBody, Body(openapi_examples=_PROMPT_BODIES)]
) -> Response:
    """Show the prompt that a conversation becomes by the model's chat template, and its tokens.

    What people wrote stays text in the tokens, though it may look like a control token in the prompt.
    """
    prompt = await _prompt(request, body)
    return json_response({"model": body.model, "prompt": prompt.text, "tokens": prompt.tokens})


async def _prompt(request: Request, body: PromptBody) -> Prompt:
    if (body.messages is None) == (body.prompt is None):
        raise HttpError(422, "invalid_request", "messages: send messages or a prompt, one of them", param="messages")
    asked = body.prompt if body.messages is None else [message.to_core() for message in body.messages]
    functions = tuple(Tool(one.name, one.description, one.parameters, one.strict) for one in body.tools)
    looking = runtime_of(request).prompt(
        body.model,
        asked or "",
        options=body.options,
        tools=Tools(functions) if functions else None,
        keep_alive=body.keep_alive,
    )
    return await attended(request.receive, looking)
