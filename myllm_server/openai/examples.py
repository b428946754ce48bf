"""Examples of the OpenAI dialect for ``/docs``, which work as they stand once ``smollm2`` is installed."""

from __future__ import annotations

from typing import Any

from myllm_server.examples import Responses, answer, bodies

_MODEL = "smollm2"
_MADE_BY = "myllm-0.1.0-llamacpp"
_USAGE = {
    "prompt_tokens": 36,
    "completion_tokens": 9,
    "total_tokens": 45,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def _error(description: str, code: str, message: str, param: str | None, kind: str) -> dict[str, Any]:
    value = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return {"description": description, "content": {"application/json": {"example": value}}}


ERRORS: Responses = {
    404: _error("No such model or path", "model_not_found", "no model named nope is installed", "model",
                "invalid_request_error"),
    422: {"description": "never sent: what can't be used is answered with 400"},
    "4XX": _error("The request can't be used as it is", "unsupported", "tools: what to change", "tools",
                  "invalid_request_error"),
    "5XX": _error("The server can't answer now", "overloaded", "what to do", None, "server_error"),
}  # fmt: skip

CHAT_BODIES = bodies(
    whole=(
        "One JSON document",
        {
            "model": _MODEL,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
            "temperature": 0,
            "max_tokens": 64,
        },
    ),
    stream=(
        "A stream that ends with its usage",
        {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
)
COMPLETION_BODIES = bodies(
    whole=("A prompt to continue", {"model": _MODEL, "prompt": "Once upon a time", "max_tokens": 32}),
)
EMBEDDINGS_BODIES = bodies(
    one=("One text", {"model": _MODEL, "input": "Hello, world!"}),
    many=("Several texts", {"model": _MODEL, "input": ["Hello", "world"]}),
)


def _document(kind: str, identity: str, choice: dict[str, Any]) -> dict[str, Any]:
    about = {"id": identity, "object": kind, "created": 1767268800, "model": _MODEL, "system_fingerprint": _MADE_BY}
    ending = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    return {**about, "choices": [choice | ending], "usage": _USAGE}


def _chunk(kind: str, identity: str, choice: str) -> str:
    about = (
        f'"id":"{identity}","object":"{kind}","created":1767268800,"model":"{_MODEL}","system_fingerprint":"{_MADE_BY}"'
    )
    return f'data: {{{about},"choices":[{{"index":0,{choice},"logprobs":null,"finish_reason":null}}]}}\n\n'


CHAT = answer(
    "The answer: one document, or a stream when `stream` is true",
    _document(
        "chat.completion",
        "chatcmpl-1",
        {"message": {"role": "assistant", "content": "The capital of France is Paris.", "refusal": None}},
    ),
    _chunk("chat.completion.chunk", "chatcmpl-1", '"delta":{"role":"assistant","content":""}')
    + _chunk("chat.completion.chunk", "chatcmpl-1", '"delta":{"content":"The"}')
    + "data: [DONE]\n\n",
)
COMPLETION = answer(
    "The continuation: one document, or a stream when `stream` is true",
    _document("text_completion", "cmpl-1", {"text": ", there was a small village."}),
    _chunk("text_completion", "cmpl-1", '"text":", there"') + "data: [DONE]\n\n",
)
EMBEDDINGS = answer(
    "The vectors, in the order of the texts",
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.4, 0.07]}],
        "model": _MODEL,
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    },
)
_ENTRY = {"id": "smollm2:135m", "object": "model", "created": 1767268800, "owned_by": "myllm"}
MODELS = answer("The installed models", {"object": "list", "data": [_ENTRY]})
MODEL = answer("The model", _ENTRY)
