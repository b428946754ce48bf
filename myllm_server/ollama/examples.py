"""Examples of the Ollama dialect for ``/docs``, which work as they stand once ``smollm2`` is installed."""

from __future__ import annotations

import json
from typing import Any

from myllm_server.examples import Responses, bodies

_MODEL = "smollm2"
_TIME = "2026-01-01T12:00:00Z"
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_ANSWER = "The capital of France is Paris."
_ABOUT = {"model": _MODEL, "created_at": _TIME}
_END = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 340000000,
    "load_duration": 1000000,
    "prompt_eval_count": 36,
    "prompt_eval_duration": 210000000,
    "eval_count": 9,
    "eval_duration": 129000000,
}


def _error(description: str, message: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": {"error": message}}}}


ERRORS: Responses = {
    404: _error("No such model or path", "model 'nope' not found; install it with: myllm pull nope"),
    422: {"description": "never sent: what can't be used is answered with 400"},
    "4XX": _error("The request can't be used as it is", "model: field required"),
    "5XX": _error("The server can't answer now", "what to do"),
}


def _answer(description: str, value: Any, lines: list[Any] | None = None) -> Responses:
    content: dict[str, Any] = {"application/json": {"example": value}}
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        content["application/x-ndjson"] = {"schema": {"type": "string"}, "example": text}
    return {200: {"description": description, "content": content}}


CHAT_BODIES = bodies(
    whole=("One JSON document", {"model": _MODEL, "messages": _QUESTION, "stream": False}),
    stream=("Lines as the text is written", {"model": _MODEL, "messages": _QUESTION, "options": {"temperature": 0}}),
    load=("Load the model for an hour", {"model": _MODEL, "keep_alive": "1h"}),
)
CHAT = _answer(
    "The answer: one document, or lines of JSON",
    {**_ABOUT, "message": {"role": "assistant", "content": _ANSWER}, **_END},
    [
        {**_ABOUT, "message": {"role": "assistant", "content": "The"}, "done": False},
        {**_ABOUT, "message": {"role": "assistant", "content": ""}, **_END},
    ],
)
GENERATE_BODIES = bodies(
    whole=("One JSON document", {"model": _MODEL, "prompt": "Why is the sky blue?", "stream": False}),
    raw=(
        "A prompt continued as it is, in lines",
        {"model": _MODEL, "prompt": "Once upon a time", "raw": True, "options": {"num_predict": 32}},
    ),
)
GENERATE = _answer(
    "The answer: one document, or lines of JSON",
    {**_ABOUT, "response": _ANSWER, **_END},
    [{**_ABOUT, "response": "The", "done": False}, {**_ABOUT, "response": "", **_END}],
)
EMBED_BODIES = bodies(
    one=("One text", {"model": _MODEL, "input": "Hello, world!"}),
    many=("Several texts", {"model": _MODEL, "input": ["Hello", "world"]}),
)
EMBED = _answer(
    "A vector of each text",
    {
        "model": _MODEL,
        "embeddings": [[0.12, -0.4, 0.07]],
        "total_duration": 12000000,
        "load_duration": 0,
        "prompt_eval_count": 4,
    },
)
EMBEDDINGS_BODIES = bodies(one=("One text", {"model": _MODEL, "prompt": "Hello, world!"}))
EMBEDDINGS = _answer("The vector", {"embedding": [0.12, -0.4, 0.07]})

_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "134.5M",
    "quantization_level": "Q4_1",
}
_NAMES = {"name": "smollm2:135m", "model": "smollm2:135m"}
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TAGS = _answer(
    "The installed models",
    {"models": [{**_NAMES, "modified_at": _TIME, "size": 91739136, "digest": _DIGEST, "details": _DETAILS}]},
)
PS = _answer(
    "The loaded models",
    {
        "models": [
            {
                **_NAMES,
                "size": 210763776,
                "digest": _DIGEST,
                "details": _DETAILS,
                "expires_at": _TIME,
                "size_vram": 0,
                "context_length": 2048,
            }
        ]
    },
)
SHOW_BODIES = bodies(one=("A model", {"model": _MODEL}))
SHOW = _answer(
    "The model",
    {
        "modelfile": "FROM smollm2:135m\n",
        "parameters": "temperature 0.2",
        "template": "{% for message in messages %}…{% endfor %}",
        "system": "",
        "license": "apache-2.0",
        "details": _DETAILS,
        "model_info": {"general.architecture": "llama", "general.parameter_count": 134515008},
        "capabilities": ["completion"],
        "modified_at": _TIME,
    },
)
PULL_BODIES = bodies(name=("A model of the catalogue", {"model": _MODEL, "stream": False}))
PULL = _answer(
    "The model is installed: one document, or lines of JSON",
    {"status": "success"},
    [
        {"status": "pulling manifest"},
        {"status": "pulling model.gguf", "digest": "file:model.gguf", "total": 91739136, "completed": 1048576},
        {"status": "success"},
    ],
)
COPY_BODIES = bodies(one=("A second name", {"source": _MODEL, "destination": "mine"}))
DELETE_BODIES = bodies(one=("A model", {"model": "mine"}))
VERSION = _answer("The version", {"version": "0.13.0"})
DONE: Responses = {200: {"description": "It is done", "content": {}}}
ROOT: Responses = {
    200: {"description": "The server is there", "content": {"text/plain": {"example": "Ollama is running"}}}
}
