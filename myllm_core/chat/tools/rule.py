"""The grammar that makes a model call a tool, with arguments that follow the tool's JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from myllm_core.chat.constraint import JSON_STYLE
from myllm_core.chat.tools.syntax import Syntax
from myllm_core.errors import InvalidRequest
from myllm_core.types import Grammar, Tool, Tools

_COMBINATORS = frozenset({"allOf", "anyOf", "oneOf", "$ref", "if", "patternProperties", "unevaluatedProperties"})
_NO_CALL = r"TEXT: /[ \t\r\n]*([^ \t\r\n{\[`](.|\n)*)?/"


def tool_rule(syntax: Syntax, tools: Tools, control: Mapping[str, int], answer: Grammar | None) -> Grammar | None:
    """What a reply with ``tools`` is held to; None: to nothing.

    ``control`` has the ids of those of the syntax's markers that are control tokens. ``answer`` is what the text is
    held to where the model is free to call or not. Raises ``InvalidRequest`` when both can't be.
    """
    rule = _Rule(syntax, tools, control, answer)
    if tools.choice == "required":
        return Grammar("lark", rule.calls_only())
    if answer is not None:
        if answer.kind != "json_schema":
            raise InvalidRequest("tools and a regular expression or grammar don't go together; leave out one of them")
        return Grammar("lark", rule.calls_or(json.loads(answer.text)))
    if any(tool.strict for tool in tools.functions):
        return Grammar("lark", rule.calls_in_text())
    return None


class _Rule:
    """Writes the grammar, in llguidance's Lark."""

    def __init__(self, syntax: Syntax, tools: Tools, control: Mapping[str, int], answer: Grammar | None) -> None:
        self._syntax = syntax
        self._control = control
        self._one = syntax.between is None or not tools.parallel
        self._all_strict = tools.choice == "required" or answer is not None
        self._tools = [tool for tool in tools.functions if tools.only in (None, tool.name)]

    def calls_only(self) -> str:
        """Nothing but calls."""
        return self._with_calls("start: calls", "")

    def calls_or(self, schema: dict[str, Any]) -> str:
        """Calls, or an answer that follows a schema."""
        return self._with_calls("start: calls | answer", f"answer: %json {_json(schema)}")

    def calls_in_text(self) -> str:
        """Text with calls in it, where only what begins as a call is held to anything."""
        opening = next(iter(self._syntax.opens))
        if not (self._syntax.around[0] + self._syntax.form[0]).startswith(opening):
            return self._with_calls("start: calls | TEXT", _NO_CALL)
        trigger = "trigger[lazy]: TEXT " + json.dumps(opening)
        if opening in self._control:
            trigger = f"trigger: TEXT <[{self._control[opening]}]>"
        text = f"{trigger}\nTEXT: /(.|\\n)*/"
        if self._syntax.around[0]:
            return self._with_calls("start: (trigger calls)* TEXT", text, opening)
        return self._with_calls("start: (trigger call)* TEXT", text, opening)

    def _with_calls(self, start: str, more: str, opened: str = "") -> str:
        """The whole grammar; the marker ``opened`` stands before what ``calls`` (or ``call``) are."""
        before, after = self._syntax.around
        between = "" if self._one else f" ({self._literal(self._syntax.between or '')} call)*"
        rules = [
            "%llguidance {}",
            start,
            f"calls: {self._literal(before.removeprefix(opened))} call{between} {self._literal(after)}",
            "call: " + " | ".join(f"call_{index}" for index in range(len(self._tools))),
        ]
        head, middle, tail = self._syntax.form
        for index, tool in enumerate(self._tools):
            begin = self._literal(head.removeprefix(opened) + tool.name + middle)
            rules.append(f"call_{index}: {begin} arguments_{index} {self._literal(tail)}")
            rules.append(f"arguments_{index}: %json {_json(self._schema(tool))}")
        return "\n".join([*rules, more]) + "\n"

    def _schema(self, tool: Tool) -> dict[str, Any]:
        return _arguments(tool) if self._all_strict or tool.strict else {"type": "object"}

    def _literal(self, text: str) -> str:
        """Text as it is written, with the ids of control tokens."""
        pattern = "|".join(map(re.escape, self._control))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        words = [f"<[{self._control[part]}]>" if part in self._control else json.dumps(part) for part in parts if part]
        return " ".join(words)


def _arguments(tool: Tool) -> dict[str, Any]:
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **_closed(tool.parameters)}


def _closed(schema: Any) -> Any:
    """A schema whose objects have only the properties that it names: a model that may add some never ends to."""
    if not isinstance(schema, dict) or _COMBINATORS & schema.keys():
        return schema
    closed = dict(schema)
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"])
    return closed


def _json(schema: dict[str, Any]) -> str:
    return json.dumps({"x-guidance": JSON_STYLE, **schema})
