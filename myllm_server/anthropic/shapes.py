"""What documents and events of the Anthropic dialect are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from myllm_core.errors import EngineError
from myllm_core.types import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage

SIGNATURE = "myllm"
"""Clients send reasoning back only with its signature; here any will do."""

_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}


def usage(counts: Usage) -> dict[str, int]:
    """Token counts: what came from the cache is counted apart from the rest of the prompt."""
    return {
        "input_tokens": counts.prompt_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens,
    }


def stop_reason(finish: Finish, max_tokens: int) -> str:
    """Why a message ended. Raises the error of one that failed."""
    if finish.error:
        raise finish.error
    if finish.reason == "cancelled":
        raise EngineError("the engine ended the reply before it was done; send the request again")
    if finish.reason == "length":
        full = finish.usage.completion_tokens < max_tokens
        return "model_context_window_exceeded" if full else "max_tokens"
    return "stop_sequence" if finish.stop is not None else _REASONS[finish.reason]


def message(identity: str, model: str, counts: Usage) -> dict[str, Any]:
    """A message that has only begun."""
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(counts),
    }


def content(events: Sequence[Event], show_thinking: bool) -> list[dict[str, Any]]:
    """The blocks of a whole reply, in the order that they came in."""
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for event in events:
        block = start_of(event)
        if block is None:
            continue
        if not blocks or is_new(event, blocks[-1]):
            blocks.append(block)
        match event:
            case TextDelta():
                blocks[-1]["text"] += event.text
            case ReasoningDelta():
                blocks[-1] |= {"signature": SIGNATURE}
                blocks[-1]["thinking"] += event.text if show_thinking else ""
            case ToolCallDelta():
                at = len(blocks) - 1
                arguments[at] = arguments.get(at, "") + event.arguments
    for at, text in arguments.items():
        blocks[at]["input"] = tool_input(text, blocks[at]["name"])
    return blocks


def start_of(event: Event) -> dict[str, Any] | None:
    """The empty block that an event is in; None for an event that is in none."""
    match event:
        case TextDelta():
            return {"type": "text", "text": ""}
        case ReasoningDelta():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCallDelta():
            return {"type": "tool_use", "id": event.id or "", "name": event.name or "", "input": {}}
    return None


def is_new(event: Event, block: dict[str, Any]) -> bool:
    """Whether an event begins another block than ``block``."""
    match event:
        case TextDelta():
            return bool(block["type"] != "text")
        case ReasoningDelta():
            return bool(block["type"] != "thinking")
        case ToolCallDelta():
            return block["type"] != "tool_use" or event.id not in (None, block["id"])
    return False


def tool_input(text: str, name: str) -> dict[str, Any]:
    """The arguments of a tool call, which this dialect has as an object."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EngineError(f"the model called {name} with arguments that are no JSON object; ask it again")
    return value
