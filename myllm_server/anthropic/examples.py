"""Examples of the Anthropic dialect for ``/docs``, which work as they stand once ``smollm2`` is installed."""

from __future__ import annotations

import json
from typing import Any

from myllm_server.examples import Responses, answer, bodies

_MODEL = "smollm2"
_USAGE = {
    "input_tokens": 36,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 9,
}
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def _error(description: str, kind: str, message: str) -> dict[str, Any]:
    value = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "9f86d081884c7d65"}
    return {"description": description, "content": {"application/json": {"example": value}}}


ERRORS: Responses = {
    404: _error("No such model or path", "not_found_error", "no model named nope is installed"),
    422: {"description": "never sent: what can't be used is answered with 400"},
    "4XX": _error("The request can't be used as it is", "invalid_request_error", "max_tokens: field required"),
    "5XX": _error("The server can't answer now", "overloaded_error", "what to do"),
}

MESSAGE_BODIES = bodies(
    whole=(
        "One JSON document",
        {"model": _MODEL, "max_tokens": 64, "system": "You answer in one sentence.", "messages": _QUESTION},
    ),
    stream=("A stream", {"model": _MODEL, "max_tokens": 64, "messages": _QUESTION, "stream": True}),
)
COUNT_BODIES = bodies(whole=("A conversation to count", {"model": _MODEL, "messages": _QUESTION}))


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": _MODEL,
    "content": [{"type": "text", "text": "The capital of France is Paris."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": _USAGE,
}
MESSAGE = answer(
    "The answer: one document, or a stream when `stream` is true",
    _MESSAGE,
    _event("message_start", message={**_MESSAGE, "content": [], "stop_reason": None})
    + _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "The"})
    + _event("content_block_stop", index=0)
    + _event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=_USAGE)
    + _event("message_stop"),
)
COUNT = answer("The number of tokens", {"input_tokens": 36})
