"""Chat templates that want a message's content as a list of parts, as those of many vision models do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from myllm_core.errors import TemplateError

JsonObject = dict[str, Any]
Render = Callable[[list[JsonObject]], str]

_PROBE = "probe_content"


def parted_roles(source: str, render: Render) -> frozenset[str]:
    """The roles whose text a template shows only in parts: ``{"type": "text", "text": …}``.

    Whether it does is tried out, role by role: what it renders is what it can do.
    """
    if "text" not in source:
        return frozenset()
    parted: frozenset[str] = frozenset()
    for role, around in _CONVERSATIONS:
        if not _shows(render, around, parted) and _shows(render, around, parted | {role}):
            parted |= {role}
    return parted | {"tool"} if "user" in parted else parted


def in_parts(messages: list[JsonObject], roles: frozenset[str]) -> list[JsonObject]:
    """The messages with the text of these roles in parts."""
    if not roles:
        return messages
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in roles and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _said(role: str, text: str) -> JsonObject:
    return {"role": role, "content": text}


_CONVERSATIONS: tuple[tuple[str, list[JsonObject]], ...] = (
    ("user", [_said("user", _PROBE)]),
    ("assistant", [_said("user", "x"), _said("assistant", _PROBE), _said("user", "x")]),
    ("system", [_said("system", _PROBE), _said("user", "x")]),
)
"""For each role a conversation that shows its text; those of roles before it are rendered as was found out."""


def _shows(render: Render, messages: list[JsonObject], roles: frozenset[str]) -> bool:
    try:
        return _PROBE in render(in_parts(messages, roles))
    except TemplateError:
        return False
