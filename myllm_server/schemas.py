"""The bodies of the native API. Strict: a wrong type, an unknown field or a value out of range is refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from myllm_core.images import decode_base64
from myllm_core.options import Options
from myllm_core.settings import parse_duration
from myllm_core.types import Image, Message, Role, Tool, ToolCall, Tools
from myllm_server.brief import Brief

ModelName = Annotated[str, Field(min_length=1, max_length=200, description="an installed model (GET /api/models)")]
SessionId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="the conversation to continue, or a new one's id")
]
_OPTIONS: Options = Field(
    Options.model_validate({}), description="how to generate; what is left out is the model's default"
)


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > _LONGEST_TIME:
        raise ValueError("write seconds, 5m, 1h, 0 or forever")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("write forever for a time without end")
    return parse_duration(value)


KeepAlive = Annotated[
    float | None,
    PlainValidator(_seconds, json_schema_input_type=str | float | None),
    Field(
        description="how long the model stays loaded after this: seconds, `5m`, `1h`, 0 or `forever`; "
        "when not given, as the settings say",
        examples=["10m"],
    ),
]
_STREAM: bool = Field(True, description="answer in Server-Sent Events as the text is written")

MAX_INPUTS = 2048
_LONGEST_TIME = 30  # characters


class Body(Brief):
    """What every body has in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CalledTool(Body):
    """A call that an assistant's message made; ``arguments`` is a JSON text."""

    id: str = Field(min_length=1, max_length=200)
    name: str
    arguments: str


def _no_parts(value: object) -> object:
    """Refuse the parts of other dialects clearly: someone may have sent an image."""
    if isinstance(value, list):
        raise PydanticCustomError("content_parts", "send a text; lists of parts aren't taken here, images go in images")
    return value


_Text = Annotated[str, BeforeValidator(_no_parts)]


class MessageImage(Body):
    """An image in a message."""

    data: str = Field(description="a PNG, JPEG, GIF or WebP file in base64")
    type: str | None = Field(None, description="its media type; the file itself decides, whatever is said here")
    at: int = Field(0, ge=0, le=2**31, description="after how many characters of the text it stands")


class ChatMessage(Body):
    """One message of a conversation."""

    role: Role
    content: _Text
    images: list[MessageImage] = Field([], description="for models that can see")
    tool_calls: list[CalledTool] = Field([], description="the calls of an assistant's message")
    tool_call_id: str | None = Field(None, description="of which call a `tool` message is the result")

    def to_core(self) -> Message:
        """The same as the core has it."""
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in self.tool_calls)
        images = tuple(Image(decode_base64(image.data), image.type or "", image.at) for image in self.images)
        return Message(self.role, self.content, "", calls, self.tool_call_id, images)


class ToolSpec(Body):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = Field(
        False, description="arguments always follow the schema, also when the call is the model's choice"
    )


class ToolName(Body):
    """The function that has to be called."""

    name: str


class ChatBody(Body):
    """A conversation to answer. With ``session_id`` only what is new needs to be sent."""

    model: ModelName
    messages: list[ChatMessage] = Field(min_length=1)
    session_id: SessionId | None = None
    stream: bool = _STREAM
    options: Options = _OPTIONS
    keep_alive: KeepAlive = None
    tools: list[ToolSpec] = Field([], description="the functions that the model may call")
    tool_choice: Literal["auto", "none", "required"] | ToolName = Field(
        "auto", description="whether it may, mustn't or must call one, or which it must call"
    )
    parallel_tool_calls: bool = Field(True, description="whether it may make several calls at once")

    def tools_to_core(self) -> Tools | None:
        """The tools, if there are any."""
        choice = self.tool_choice
        functions = tuple(Tool(one.name, one.description, one.parameters, one.strict) for one in self.tools)
        if isinstance(choice, ToolName):
            return Tools(functions, "required", choice.name, self.parallel_tool_calls)
        return Tools(functions, choice, None, self.parallel_tool_calls) if functions or choice == "required" else None


class ChatQuery(BaseModel):
    """One message of a conversation, as a browser's ``EventSource`` can send it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName
    message: str
    session_id: SessionId | None = None


class GenerateBody(Body):
    """A raw prompt to continue, without a chat template."""

    model: ModelName
    prompt: str
    stream: bool = _STREAM
    options: Options = _OPTIONS
    keep_alive: KeepAlive = None


class EmbeddingsBody(Body):
    """A text, or several, to make vectors of."""

    model: ModelName
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    keep_alive: KeepAlive = None


class LoadBody(Body):
    """How to load a model."""

    keep_alive: KeepAlive = None


class NoFields(Body):
    """A body that says nothing: ``{}``."""


class SessionChange(Body):
    """What of a session is to be another."""

    title: str | None = Field(None, min_length=1, max_length=200)
    model: ModelName | None = None

    @model_validator(mode="after")
    def _is_a_change(self) -> Self:
        if self.title is None and self.model is None:
            raise ValueError("there is nothing to change; send a title or a model")
        return self


class ForkBody(Body):
    """Where to copy a session to."""

    session_id: SessionId | None = None
    at: int | None = Field(None, ge=1, description="go on after this message of the path, counted from 1")


class ImportQuery(BaseModel):
    """Under which id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    session_id: SessionId | None = None


class PageQuery(BaseModel):
    """Which part of a list, and which of its entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(50, ge=1, le=1000, description="how many at most")
    offset: int = Field(0, ge=0, le=2**31, description="how many to skip")
    search: str = Field("", max_length=1000, description="only those that hold all these words")
