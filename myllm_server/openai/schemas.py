"""Bodies of the OpenAI dialect: strict in types, lenient in fields, and what can't be honoured is refused.

Fields that the dialect defines are honoured or refused; others are ignored and named, see ``ignored``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from myllm_core.options import Options, parse_options
from myllm_core.types import Message, ToolCall, Tools
from myllm_server.brief import Brief
from myllm_server.lenient import Lenient, Unsupported, check_supported, invalid
from myllm_server.openai.tools import ChatTool, ChatToolChoice, Mode, tools_to_core
from myllm_server.pictures import Content, Parts
from myllm_server.schemas import MAX_INPUTS, ModelName

MAX_CHOICES = 128
COMPLETION_TOKENS = 16
"""The dialect's own default for raw prompts, which have no end of their own."""
_SEEDS = 2**32

_UNSUPPORTED: Unsupported = {
    "audio": (None,),
    "best_of": (None, 1),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "metadata": (None, {}),  # it is for answers that are kept
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}


def _joined(value: object) -> object:
    """A message's content: its text as it is, or of its parts, with the images between them."""
    if isinstance(value, str):
        return Content(value)
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    if value is None:
        return None
    parts = Parts()
    for index, part in enumerate(value):
        if isinstance(part, dict) and part.get("type") == "image_url":
            parts.show(_url_of(index, part.get("image_url")))
        else:
            parts.say(_text_of(index, part))
    return parts.content()


def _url_of(index: int, image: object) -> str:
    url = image.get("url") if isinstance(image, dict) else None
    if isinstance(url, str):
        return url
    raise PydanticCustomError(
        "content_part",
        'part {index} should be {"type": "image_url", "image_url": {"url": "data:…"}}',
        {"index": index},
    )


def _text_of(index: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
    if isinstance(text, str):
        return text
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        raise PydanticCustomError(
            "content_part",
            "part {index} is of type {kind}; only text and image_url are taken here",
            {"index": index, "kind": kind},
        )
    raise PydanticCustomError("content_part", 'part {index} should be {"type": "text", "text": "…"}', {"index": index})


def _listed(value: object) -> object:
    """One text, or the tokens of one, or several of them, as a list."""
    given = [value] if isinstance(value, str) or _are_tokens(value) else value
    for index, item in enumerate(given if isinstance(given, list) else []):
        if not isinstance(item, str) and not _are_tokens(item):
            raise PydanticCustomError(
                "text", "item {index} should be a text, or a list of its tokens", {"index": index}
            )
    return given


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and 0 <= item < 2**31 for item in value)


_TEXT: dict[str, Any] = {"type": "string"}
_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_IMAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {"url": {**_TEXT, "description": "data:image/png;base64,…"}, "detail": _TEXT},
            "required": ["url"],
        },
    },
    "required": ["type", "image_url"],
}
_Content = Annotated[
    Content | None,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_PART, _IMAGE]}}, {"type": "null"}]}),
]


_TOKENS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_Texts = Annotated[
    list[Any],  # str | list[int]: pydantic's own union would tell of both for whatever is neither
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _TOKENS, {"type": "array", "items": _TOKENS}]}),
]


class FunctionCall(Lenient):
    """Which function, with what: ``arguments`` is a JSON text."""

    name: str
    arguments: str


class CalledTool(Lenient):
    """A tool call of an earlier reply."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Lenient):
    """One message of a conversation."""

    unsupported: ClassVar[Unsupported] = {"audio": (None,), "function_call": (None,)}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content = None
    refusal: str | None = Field(None, description="what an earlier reply refused, which is its text too")
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None

    def to_core(self, index: int) -> Message:
        """The same as the core has it. Raises ``HttpError`` for one that can't be."""
        where = f"messages.{index}"
        if self.tool_calls and self.role != "assistant":
            raise invalid(f"{where}.tool_calls", "only an assistant's message has them")
        if self.role == "tool" and not self.tool_call_id:
            raise invalid(f"{where}.tool_call_id", "say which call this is the result of")
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise invalid(f"{where}.content", "send a text, or parts")
        content = self.content or Content(self.refusal or "")
        if content.urls and self.role not in ("user", "tool"):
            raise invalid(f"{where}.content", f"a message of role {self.role} has no images; a user's has")
        calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ())
        role = "system" if self.role == "developer" else self.role
        images = content.images(f"{where}.content")
        return Message(role, content.text, self.reasoning_content or "", calls, self.tool_call_id, images)


class StreamOptions(Lenient):
    """How to stream."""

    unsupported: ClassVar[Unsupported] = {"include_obfuscation": (None, False)}

    include_usage: bool | None = Field(None, description="end with a chunk that has the usage and no choices")


class Generation(Options, Brief):
    """What chats and completions have in common. Every option of myllm is a field, also those OpenAI doesn't have."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED

    model_config = ConfigDict(extra="allow")

    model: ModelName
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many answers, each with a seed of its own (1)")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes the answer repeatable (random)")
    stream: bool | None = Field(None, description="answer in Server-Sent Events as the text is written (false)")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="users of one address take turns when the model is busy")
    safety_identifier: str | None = Field(None, description="the newer name of `user`")
    prompt_cache_key: str | None = Field(None, description="nothing to do: what a prompt begins with is kept by itself")

    @property
    def asker(self) -> str | None:
        """Who of those at one address asks."""
        return self.user or self.safety_identifier

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self, **resolved: Any) -> list[Options]:
        """The options of each of the ``n`` answers to a prompt: they differ in their seeds.

        Without ``fit`` a prompt that doesn't fit is refused: this dialect can't tell what was left out. Raises
        ``InvalidOption``.
        """
        values = {name: getattr(self, name) for name in Options.model_fields}
        values |= {"fit": self.fit or "error"} | resolved
        seeds = [None if self.seed is None else (self.seed + index) % _SEEDS for index in range(self.n or 1)]
        return [parse_options(values | {"seed": seed}) for seed in seeds]


class NamedSchema(Lenient):
    """A JSON schema as the dialect wraps it; ``strict`` or not, the answer follows it."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Lenient):
    """What the answer is to be: any text, any JSON object, or one that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def to_core(self) -> dict[str, Any] | None:
        """The schema that the answer follows, if any. Raises ``HttpError`` for one that is missing."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise invalid("response_format.json_schema", "send the schema")
            return self.json_schema.json_schema
        return {"type": "object"} if self.type == "json_object" else None


class ChatBody(Generation):
    """A conversation to answer."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="the same as `max_tokens`")
    response_format: ResponseFormat | None = None
    prediction: dict[str, Any] | None = Field(
        None, description="nothing to do: a guess at the answer may make it quicker, never another one"
    )
    logprobs: bool | None = Field(None, description="log probabilities of the tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many others; needs `logprobs`")
    tools: list[ChatTool] | None = Field(None, description="the functions that the model may call")
    tool_choice: Mode | ChatToolChoice | None = Field(
        None, description="whether it may (`auto`), mustn't (`none`) or must (`required`, or which) call one (`auto`)"
    )
    parallel_tool_calls: bool | None = Field(None, description="whether it may make several calls at once (true)")

    def tools_to_core(self) -> Tools | None:
        """The tools, if there are any. Raises ``HttpError`` for what no model could call."""
        choice = self.tool_choice.function if isinstance(self.tool_choice, ChatToolChoice) else self.tool_choice
        return tools_to_core([tool.function for tool in self.tools or ()], choice, self.parallel_tool_calls)

    def to_core(self) -> tuple[list[Message], list[Options]]:
        """The conversation, and the options of each answer. Raises ``HttpError`` for what can't be honoured."""
        check_supported(self)
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.max_tokens not in (None, limit):
            raise invalid("max_tokens", "it isn't max_completion_tokens; send one of them")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "it needs logprobs: true")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        schema = self.response_format.to_core() if self.response_format else None
        if schema is None:
            schema = self.json_schema
        elif self.json_schema is not None:
            raise invalid("response_format", "there is a json_schema too; send one of them")
        messages = [message.to_core(index) for index, message in enumerate(self.messages)]
        return messages, self.options(max_tokens=limit, logprobs=logprobs, json_schema=schema)


class CompletionBody(Generation):
    """Raw prompts to continue."""

    prompt: _Texts = Field(min_length=1, max_length=MAX_CHOICES)
    echo: bool | None = Field(None, description="put the prompt before the text (false)")

    def to_core(self) -> tuple[list[str | list[int]], list[Options]]:
        """The prompts, and the options of each prompt's answers. Raises ``HttpError`` for what can't be honoured."""
        check_supported(self)
        if self.echo and self.logprobs is not None:
            raise invalid("logprobs", "a prompt's own log probabilities aren't known; leave out echo or logprobs")
        if len(self.prompt) * (self.n or 1) > MAX_CHOICES:
            raise invalid("n", f"prompts times n should be at most {MAX_CHOICES}")
        limit = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return self.prompt, self.options(max_tokens=limit)


class EmbeddingsBody(Lenient):
    """Texts to make vectors of."""

    model: ModelName
    input: _Texts = Field(min_length=1, max_length=MAX_INPUTS)
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is of little-endian 32-bit floats (float)"
    )
    dimensions: int | None = Field(None, ge=1, description="only the model's own number")
    user: str | None = None
