"""What a conversation with tools has to look like, whichever engine answers it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from myllm_core.errors import InvalidRequest
from myllm_core.types import Message, Tool, Tools

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_tools(tools: Tools) -> None:
    """Raise ``InvalidRequest`` for tools that no model could call."""
    names = [tool.name for tool in tools.functions]
    if len(names) > MAX_TOOLS:
        raise InvalidRequest(f"tools: {len(names)} are too many; send at most {MAX_TOOLS}")
    for tool in tools.functions:
        _check_tool(tool)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidRequest(f"tools: {twice} is there twice; give each a name of its own")
    if tools.choice == "required" and not names:
        raise InvalidRequest("tool_choice: there are no tools to call; send some")
    if tools.only is not None and tools.only not in names:
        raise InvalidRequest(f"tool_choice: there is no tool {tools.only[:64]!a}; the tools: {', '.join(names)[:300]}")


def _check_tool(tool: Tool) -> None:
    if not _NAME.fullmatch(tool.name):
        raise InvalidRequest(f"tools: {tool.name[:70]!a} can't be a name; use 1 to 64 characters of A-Z a-z 0-9 _ . -")
    kind = (tool.parameters or {}).get("type", "object")
    if kind != "object":
        raise InvalidRequest(f"tools: the parameters of {tool.name} must be a JSON schema of type object, not {kind!a}")


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise ``InvalidRequest`` unless each call is answered by one result before the conversation goes on."""
    open_calls: dict[str, str] = {}
    for index, message in enumerate(messages):
        if message.role == "tool":
            _check_result(index, message, open_calls)
            del open_calls[message.tool_call_id or ""]
            continue
        if open_calls:
            call, name = next(iter(open_calls.items()))
            raise InvalidRequest(
                f"messages.{index}: the call {call[:64]!a} of {name} has no result; "
                "send a message with role tool and this tool_call_id first"
            )
        open_calls = _calls(index, message)
    if open_calls:
        call, name = next(iter(open_calls.items()))
        raise InvalidRequest(
            f"the call {call[:64]!a} of {name} has no result; send a message with role tool and this tool_call_id"
        )


def _check_result(index: int, message: Message, open_calls: dict[str, str]) -> None:
    if not message.tool_call_id:
        raise InvalidRequest(f"messages.{index}: say which call this is the result of (tool_call_id)")
    if message.tool_call_id not in open_calls:
        raise InvalidRequest(
            f"messages.{index}: no call {message.tool_call_id[:64]!a} waits for a result; "
            "a result comes once, right after the message with its call"
        )


def _calls(index: int, message: Message) -> dict[str, str]:
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest(f"messages.{index}: only an assistant's message has tool_calls")
    calls = {call.id: call.name for call in message.tool_calls}
    if len(calls) < len(message.tool_calls):
        raise InvalidRequest(f"messages.{index}: two tool_calls have the same id; give each its own")
    return calls
