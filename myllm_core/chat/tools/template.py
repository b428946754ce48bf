"""What a chat template can show of tools, and the same in plain words where it can't."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from myllm_core.chat.tools.syntax import Syntax
from myllm_core.errors import TemplateError
from myllm_core.types import Message, Tools

JsonObject = dict[str, Any]
Render = Callable[[list[JsonObject], list[JsonObject] | None], str]

_NINE = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a template shows: ``tools`` that may be called, ``calls`` that were made with their results.

    ``objects`` says that it takes arguments as objects, not as JSON text, and ``several`` that one message may have
    more than one call.
    """

    tools: bool
    calls: bool
    objects: bool
    several: bool


def abilities_of(render: Render) -> Abilities:
    """Try a template out: what it renders is what it can do."""
    parameters = {"type": "object", "properties": {"probe_key": {"type": "string", "description": "d"}}}
    function = {"name": "probe_tool", "description": "d", "parameters": {**parameters, "required": ["probe_key"]}}
    tools = [{"type": "function", "function": function}]
    user = {"role": "user", "content": "probe_question"}

    def shown(messages: list[JsonObject]) -> str:
        try:
            return render(messages, tools)
        except TemplateError:
            return ""

    def turn(*ids: str, arguments: Any) -> list[JsonObject]:
        made = {"name": "probe_called", "arguments": arguments}
        calls = [{"id": i, "type": "function", "function": made} for i in ids]
        results = [{"role": "tool", "tool_call_id": i, "name": "probe_called", "content": f"r_{i}"} for i in ids]
        return [user, {"role": "assistant", "content": "", "tool_calls": calls}, *results]

    value = {"probe_key": "probe_value"}
    as_object = shown(turn("probecal1", arguments=value))
    as_text = shown(turn("probecal1", arguments=json.dumps(value)))
    objects = _shows_call(as_object) and "'probe_key'" not in as_object
    several = shown(turn("probecal1", "probecal2", arguments=value if objects else json.dumps(value)))
    return Abilities(
        "probe_tool" in shown([user]),
        objects or (_shows_call(as_text) and '"probe_value"' in as_text),
        objects,
        "r_probecal1" in several and "r_probecal2" in several,
    )


def _shows_call(rendered: str) -> bool:
    return all(part in rendered for part in ("probe_called", "probe_key", "probe_value", "r_probecal1"))


def functions(tools: Tools) -> list[JsonObject]:
    """The tools as chat templates expect them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools.functions
    ]


def as_values(messages: Sequence[Message], syntax: Syntax, abilities: Abilities | None) -> list[JsonObject]:
    """Messages as a template takes them; ``abilities`` None when there are no calls in them."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    if abilities is None or abilities.calls:
        told = messages if abilities is None or abilities.several else _one_by_one(messages)
        return [_value(message, names, syntax, abilities) for message in told]
    return _in_words(messages, names, syntax)


def _value(message: Message, names: dict[str, str], syntax: Syntax, abilities: Abilities | None) -> JsonObject:
    value: JsonObject = {"role": message.role, "content": message.content}
    if message.reasoning:
        value["reasoning_content"] = message.reasoning
    if message.tool_call_id:
        value["tool_call_id"] = _call_id(message.tool_call_id, syntax)
        value["name"] = names.get(message.tool_call_id, "")
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "id": _call_id(call.id, syntax),
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments, abilities)},
            }
            for call in message.tool_calls
        ]
    return value


def _arguments(text: str, abilities: Abilities | None) -> Any:
    if abilities is None or not abilities.objects:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _call_id(call_id: str, syntax: Syntax) -> str:
    if not syntax.nine or _NINE.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Messages in which each call has one of its own, with its result behind it."""
    results = {message.tool_call_id or "": message for message in messages if message.role == "tool"}
    told: list[Message] = []
    for message in messages:
        if len(message.tool_calls) > 1:
            for index, call in enumerate(message.tool_calls):
                content, reasoning = (message.content, message.reasoning) if index == 0 else ("", "")
                told.append(Message("assistant", content, reasoning, (call,)))
                told += [results.pop(call.id)] if call.id in results else []
        elif message.role != "tool" or message.tool_call_id in results:
            told.append(message)
    return told


def _in_words(messages: Sequence[Message], names: dict[str, str], syntax: Syntax) -> list[JsonObject]:
    """Calls as the model writes them, and results as a user's message, for templates that know neither."""
    values: list[JsonObject] = []
    after_result = False
    for message in messages:
        value: JsonObject = {"role": message.role, "content": message.content}
        if message.reasoning:
            value["reasoning_content"] = message.reasoning
        if message.tool_calls:
            calls = [syntax.write(call.name, call.arguments) for call in message.tool_calls]
            value["content"] = "\n".join([*([message.content] if message.content else []), *calls])
        is_result = message.role == "tool"
        if is_result:
            name = names.get(message.tool_call_id or "", "the function")
            value = {"role": "user", "content": f"{name} returned:\n{message.content}"}
        if after_result and value["role"] == "user":
            values[-1]["content"] += f"\n\n{value['content']}"
        else:
            values.append(value)
        after_result = is_result or (after_result and value["role"] == "user")
    return values


def with_instructions(values: list[JsonObject], tools: Tools, syntax: Syntax) -> list[JsonObject]:
    """The messages with the tools told in the system message, for a template that doesn't show them."""
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in functions(tools))
    several = " For several calls, write several objects, a line each." if tools.parallel else ""
    text = (
        f"You can call these functions:\n{shown}\n\n"
        "To call one, answer with nothing but a JSON object on one line, with its name and the arguments: "
        f"{syntax.write('name', '{…}')}.{several} What it returns comes with the next message. "
        "When no function is needed, answer in plain words."
    )
    if values and values[0]["role"] == "system":
        return [{**values[0], "content": f"{values[0]['content']}\n\n{text}"}, *values[1:]]
    return [{"role": "system", "content": text}, *values]
