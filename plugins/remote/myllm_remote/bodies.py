"""Requests as OpenAI's API has them. What can't be said there is refused by name."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from myllm_core import ChatRequest, CompletionRequest, Message, Sampling
from myllm_core.errors import UnsupportedError
from myllm_core.types import Grammar, Tools
from myllm_remote.dialects import DIALECTS, STANDARD, Dialect
from myllm_remote.spec import Spec

_DEFAULTS = Sampling()


def chat_body(spec: Spec, request: ChatRequest) -> dict[str, Any]:
    """The body of ``POST /chat/completions``. Raises ``UnsupportedError``."""
    dialect = DIALECTS[spec.dialect]
    body = _common(spec, dialect, request.sampling, request.stop, request.grammar)
    body |= conversation(spec, request)
    if request.max_tokens is not None:
        body[dialect.limit] = request.max_tokens
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.logprobs}
    if request.ignore_eos:
        raise _cannot(spec, "ignore_eos")
    return body


def conversation(spec: Spec, request: ChatRequest) -> dict[str, Any]:
    """The fields that a prompt is made of: messages and tools."""
    messages = [_message(message, DIALECTS[spec.dialect]) for message in request.messages]
    return {"messages": messages} | (_tools(request.tools) if request.tools and request.tools.functions else {})


def completion_body(spec: Spec, request: CompletionRequest, context_size: int) -> dict[str, Any]:
    """The body of ``POST /completions``. Raises ``UnsupportedError``."""
    dialect = DIALECTS[spec.dialect]
    body = _common(spec, dialect, request.sampling, request.stop, request.grammar)
    body["prompt"] = request.prompt
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    elif dialect.completion_limit:
        body["max_tokens"] = context_size if dialect.completion_limit == "context" else None
    else:
        raise UnsupportedError("give max_tokens: this server ends a raw prompt after 16 tokens when nothing is said")
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.ignore_eos:
        raise _cannot(spec, "ignore_eos")
    return body


def _common(
    spec: Spec, dialect: Dialect, sampling: Sampling, stop: tuple[str, ...], grammar: Grammar | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": spec.model, "stream": True, "stream_options": {"include_usage": True}}
    names = {name: name for name in sorted(STANDARD)} | dialect.sampling
    body |= {theirs: getattr(sampling, ours) for ours, theirs in names.items() if _is_sent(ours, sampling, dialect)}
    if body.get("top_k") == 0:
        body["top_k"] = dialect.top_k_off
    if stop:
        body["stop"] = list(stop)
    return body | (_held_to(spec, dialect, grammar) if grammar else {})


def _is_sent(name: str, sampling: Sampling, dialect: Dialect) -> bool:
    is_default = getattr(sampling, name) == getattr(_DEFAULTS, name)
    return not (dialect.same_defaults and is_default) or name in ("temperature", "seed")


def _held_to(spec: Spec, dialect: Dialect, grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_schema":
        schema = {"name": "answer", "strict": True, "schema": json.loads(grammar.text)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    name = "grammar" if grammar.kind == "lark" else grammar.kind
    if grammar.kind not in dialect.grammars:
        raise _cannot(spec, name)
    return {name: grammar.text}


def _cannot(spec: Spec, option: str) -> UnsupportedError:
    kind = "a server of this kind" if spec.dialect == "other" else f"a {spec.dialect} server"
    return UnsupportedError(f"{kind} has no option {option}; leave it out, or run the model here")


def _message(message: Message, dialect: Dialect) -> dict[str, Any]:
    shape: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.tool_calls:
        shape["content"] = _content(message) or None
        shape["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shape["tool_call_id"] = message.tool_call_id
    if message.reasoning and dialect.reasoning:
        shape["reasoning_content"] = message.reasoning
    return shape


def _content(message: Message) -> str | list[dict[str, Any]]:
    """A text, or parts of it with images between them, each as a ``data:`` address."""
    if not message.images:
        return message.content
    parts: list[dict[str, Any]] = []
    at = 0
    for image in sorted(message.images, key=lambda one: one.at):
        parts += _text_part(message.content[at : image.at])
        at = max(at, image.at)
        address = f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": address}})
    return parts + _text_part(message.content[at:])


def _text_part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _tools(tools: Tools) -> dict[str, Any]:
    functions = [
        {
            "name": tool.name,
            **({"description": tool.description} if tool.description else {}),
            **({"parameters": tool.parameters} if tool.parameters is not None else {}),
            **({"strict": True} if tool.strict else {}),
        }
        for tool in tools.functions
    ]
    choice: Any = tools.choice
    if tools.only is not None:
        choice = {"type": "function", "function": {"name": tools.only}}
    return {
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": choice,
        **({} if tools.parallel else {"parallel_tool_calls": False}),
    }
