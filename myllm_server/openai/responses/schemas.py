"""The body of a response: its items as messages, and its fields as options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from myllm_core.options import Options, parse_options
from myllm_core.types import Message, ToolCall, Tools
from myllm_server.lenient import Lenient, Unsupported, check_supported, invalid
from myllm_server.openai.tools import Mode, ResponseTool, ResponseToolChoice, tools_to_core
from myllm_server.pictures import Content, Parts
from myllm_server.schemas import ModelName

_UNSUPPORTED: Unsupported = {
    "access_programs": (None,),
    "background": (None, False),
    "background_options": (None,),
    "context_management": (None, []),
    "conversation": (None,),
    "image": (None,),
    "include": (None, []),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "prompt": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "service_tier": (None, "auto", "default"),
    "top_logprobs": (None, 0),
}

RESPONSE_ID = r"^resp_[0-9a-f]{48}$"
_TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


def _content(value: object) -> object:
    """A content: its text as it is, or of its parts, with the images between them."""
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    parts = Parts()
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        field = {"refusal": "refusal", "input_image": "image_url"}.get(str(kind), "text")
        given = part.get(field) if isinstance(part, dict) else None
        if kind not in (*_TEXTS, "input_image") or not isinstance(given, str):
            raise PydanticCustomError(
                "content_part",
                "part {index} is of type {kind}; only text, and input_image with an image_url, are taken here",
                {"index": index, "kind": str(kind)[:40]},
            )
        (parts.show if kind == "input_image" else parts.say)(given)
    return parts.content()


_Content = Annotated[
    Content,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]


class Item(Lenient):
    """A message, a call of an earlier response, its result, reasoning, or the id of such an item of a kept response."""

    unsupported: ClassVar[Unsupported] = {"encrypted_content": (None,)}

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    id: str | None = Field(
        None,
        description="which item an `item_reference` is; else nothing to do, as `status`: items may be sent as they are",
    )
    status: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: _Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: _Content | None = None
    summary: _Content | None = None


def _items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Format(Lenient):
    """What the text is to be: any text, any JSON object, or one that follows a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class Text(Lenient):
    """How the text is to be."""

    unsupported: ClassVar[Unsupported] = {"verbosity": (None, "medium")}

    format: Format | None = None


class Reasoning(Lenient):
    """How much a model that reasons does so."""

    unsupported: ClassVar[Unsupported] = {
        "context": (None, "auto"),
        "generate_summary": (None,),
        "mode": (None, "standard"),
        "summary": (None, "auto"),
    }

    effort: Literal["none", "minimal", "low", "medium", "high"] | None = None


class StreamOptions(Lenient):
    """How to stream."""

    unsupported: ClassVar[Unsupported] = {"include_obfuscation": (None, False)}


class ResponseBody(Lenient):
    """What to respond to. The response is kept, unless ``store`` is false, and another one can go on from it."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED

    model: ModelName
    input: Annotated[list[Item], BeforeValidator(_items)] = Field(
        min_length=1, json_schema_extra={"description": "a text, or messages, calls and their results"}
    )
    instructions: str | None = Field(None, description="a system message for this response alone")
    previous_response_id: str | None = Field(None, pattern=RESPONSE_ID, description="the response to go on from")
    store: bool | None = Field(None, description="keep the response (true)")
    stream: bool | None = Field(None, description="answer in Server-Sent Events as it is written (false)")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_output_tokens: int | None = Field(None, ge=1, description="most tokens to write")
    tools: list[ResponseTool] | None = Field(None, description="the functions that the model may call")
    tool_choice: Mode | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="a conversation too long: leave out the oldest turns, or refuse (disabled)"
    )
    metadata: dict[str, str] | None = Field(None, max_length=16, description="kept with the response")
    user: str | None = None
    safety_identifier: str | None = Field(None, description="the newer name of `user`")
    prompt_cache_key: str | None = Field(None, description="nothing to do: what a prompt begins with is kept by itself")
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """Raise ``HttpError`` for a field that can't be honoured."""
        check_supported(self)
        for index, item in enumerate(self.input):
            _check_item(index, item)

    def references(self) -> list[str]:
        """The ids of items that the input only refers to."""
        return [item.id for item in self.input if item.type == "item_reference" and item.id is not None]

    def messages(self, referred: Mapping[str, Item]) -> list[Message]:
        """The conversation that the input is; calls side by side are of one message. ``referred`` has the items that
        the input refers to, by these ids.
        """
        messages: list[Message] = []
        reasoning = ""
        for index, item in enumerate(self._resolved(referred)):
            if item.type == "reasoning":
                reasoning += (item.content or item.summary or Content()).text
                continue
            message = _message(index, item, reasoning)
            last = messages[-1] if messages else None
            if item.type == "function_call" and last is not None and last.role == "assistant":
                calls = (*last.tool_calls, *message.tool_calls)
                messages[-1] = Message("assistant", last.content, last.reasoning + reasoning, calls)
            else:
                messages.append(message)
            reasoning = ""
        return messages

    def _resolved(self, referred: Mapping[str, Item]) -> list[Item]:
        """The items themselves; one that is referred to several times is there once."""
        items: dict[object, Item] = {}
        for index, item in enumerate(self.input):
            if item.type == "item_reference":
                item = referred[item.id or ""]
                items.setdefault(item.id, item)
            else:
                items[index] = item
        return list(items.values())

    def options(self) -> Options:
        """How to generate. Raises ``HttpError`` and ``InvalidOption``."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_output_tokens,
            "fit": "drop" if self.truncation == "auto" else "error",
            "json_schema": self._schema(),
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
        }
        return parse_options(given)

    def _schema(self) -> dict[str, Any] | None:
        asked = self._asked_format()
        if asked.type == "json_schema" and asked.json_schema is None:
            raise invalid("text.format.schema", "send the schema")
        return asked.json_schema if asked.type == "json_schema" else {"json_object": {"type": "object"}}.get(asked.type)

    def tools_to_core(self) -> Tools | None:
        """The tools, if there are any. Raises ``HttpError`` for what no model could call."""
        return tools_to_core(self.tools or (), self.tool_choice, self.parallel_tool_calls)

    def told(self) -> dict[str, Any]:
        """The fields of the request that the response has too."""
        told = self.model_dump(
            by_alias=True,
            include={"model", "instructions", "metadata", "previous_response_id", "temperature", "top_p", "user"},
        )
        return told | {
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": self.reasoning.effort if self.reasoning else None, "summary": None},
            "store": self.store is not False,
            "text": {"format": self._asked_format().model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _dumped(self.tool_choice) or "auto",
            "tools": [_dumped(tool) for tool in self.tools or ()],
            "truncation": self.truncation or "disabled",
        }

    def _asked_format(self) -> Format:
        return self.text.format if self.text and self.text.format else Format.model_validate({})


def _dumped(value: Lenient | str | None) -> Any:
    return value.model_dump(by_alias=True) if isinstance(value, Lenient) else value


def _check_item(index: int, item: Item) -> None:
    needed = {
        "message": ("role", "content"),
        "function_call": ("call_id", "name", "arguments"),
        "function_call_output": ("call_id", "output"),
        "reasoning": (),
        "item_reference": ("id",),
    }[item.type]
    for name in needed:
        if getattr(item, name) is None:
            raise invalid(f"input.{index}.{name}", f"a {item.type} has one")


def _message(index: int, item: Item, reasoning: str) -> Message:
    if item.type == "function_call":
        call = ToolCall(item.call_id or "", item.name or "", item.arguments or "")
        return Message("assistant", "", reasoning, (call,))
    if item.type == "function_call_output":
        output = item.output or Content()
        return Message("tool", output.text, tool_call_id=item.call_id, images=output.images(f"input.{index}.output"))
    role = "system" if item.role == "developer" else item.role or "user"
    content, where = item.content or Content(), f"input.{index}.content"
    if content.urls and role != "user":
        raise invalid(where, f"a message of role {item.role} has no images; a user's has")
    return Message(role, content.text, reasoning if role == "assistant" else "", images=content.images(where))
