"""Bodies of the Anthropic dialect: blocks of content in, messages of the core out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from myllm_core.options import MAX_TOKENS, Options, parse_options
from myllm_core.types import Image, Message, Tool, ToolCall, Tools
from myllm_server.lenient import Lenient, Unsupported, check_supported, invalid, unsupported_field
from myllm_server.pictures import NOT_FETCHED, Parts, from_base64, moved, one_after_another
from myllm_server.schemas import ModelName

_UNSUPPORTED: Unsupported = {
    "container": (None,),
    "context_management": (None, {}, {"edits": []}),
    "diagnostics": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "prefill": (None,),
    "speed": (None, "standard"),
    "user_profile_id": (None,),
}
_DIRECT = {"type": "direct"}
_CACHE_CONTROL: Any = Field(None, description="nothing to do: what a prompt begins with is kept by itself")


class TextBlock(Lenient):
    """A piece of text."""

    unsupported: ClassVar[Unsupported] = {"citations": (None, [])}

    type: Literal["text"]
    text: str
    cache_control: Any = _CACHE_CONTROL


class ImageSource(Lenient):
    """Where an image is: in the request itself, as base64."""

    type: Literal["base64", "url", "file"]
    media_type: str | None = Field(None, description="the file itself decides, whatever is said here")
    data: str | None = None


class ImageBlock(Lenient):
    """An image."""

    type: Literal["image"]
    source: ImageSource
    cache_control: Any = _CACHE_CONTROL

    def to_core(self, where: str) -> bytes:
        """The file. Raises ``HttpError`` for one that isn't in the request."""
        if self.source.type != "base64":
            raise unsupported_field(f"{where}.source", NOT_FETCHED)
        if self.source.data is None:
            raise invalid(f"{where}.source.data", "send the file in base64")
        return from_base64(f"{where}.source.data", self.source.data)


class ThinkingBlock(Lenient):
    """The reasoning of an earlier reply. Its signature isn't checked."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Lenient):
    """A tool call of an earlier reply."""

    unsupported: ClassVar[Unsupported] = {"caller": (None, _DIRECT), "toolset_name": (None,)}

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]
    cache_control: Any = _CACHE_CONTROL


def _blocks(value: object) -> object:
    """A text as the one block that it is short for."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_Texts = Annotated[list[TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock])]


_Shown = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]
_Said = Annotated[list[_Shown], BeforeValidator(_blocks, json_schema_input_type=str | list[_Shown])]


class ToolResultBlock(Lenient):
    """What a tool call came to."""

    unsupported: ClassVar[Unsupported] = {"toolset_name": (None,)}

    type: Literal["tool_result"]
    tool_use_id: str
    content: _Said | None = None
    is_error: bool | None = None
    cache_control: Any = _CACHE_CONTROL

    def to_core(self, where: str) -> Message:
        """The same as the core has it. Raises ``HttpError``."""
        said, images = _mixed(self.content or [], f"{where}.content")
        before = "Error: " if self.is_error else ""
        images = tuple(moved(images, len(before)))
        return Message("tool", f"{before}{said}", tool_call_id=self.tool_use_id, images=images)


Block = Annotated[TextBlock | ImageBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
_Blocks = Annotated[list[Block], BeforeValidator(_blocks, json_schema_input_type=str | list[Block])]
_ALLOWED = {
    "user": (TextBlock, ImageBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


class InputMessage(Lenient):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: _Blocks

    def to_core(self, index: int) -> list[Message]:
        """The same as the core has it: results of tools are messages of their own there. Raises ``HttpError``."""
        for at, block in enumerate(self.content):
            if not isinstance(block, _ALLOWED[self.role]):
                raise invalid(f"messages.{index}.content.{at}", f"a message of role {self.role} has no {block.type}")
        where = f"messages.{index}.content"
        text, images = _mixed(self.content, where)
        if self.role == "assistant":
            reasoning = "\n".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))
            used = [block for block in self.content if isinstance(block, ToolUseBlock)]
            calls = tuple(ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False)) for block in used)
            return [Message("assistant", text, reasoning, calls)]
        results = [
            block.to_core(f"{where}.{at}")
            for at, block in enumerate(self.content)
            if isinstance(block, ToolResultBlock)
        ]
        if len(results) == len(self.content) > 0:
            return results
        return [*results, Message(self.role, text, images=images)]


def _mixed(blocks: Sequence[Lenient], where: str) -> tuple[str, tuple[Image, ...]]:
    """The text of blocks, and the images between them; other blocks aren't looked at. Raises ``HttpError``."""
    parts = Parts()
    for at, block in enumerate(blocks):
        if isinstance(block, TextBlock):
            parts.say(block.text)
        elif isinstance(block, ImageBlock):
            parts.show(block.to_core(f"{where}.{at}"))
    return parts.text, tuple(parts.images)


def _joined(texts: Sequence[TextBlock]) -> str:
    return "\n".join(block.text for block in texts)


def _in_turns(messages: Sequence[Message]) -> list[Message]:
    """The conversation with messages of one side after another made one, as this dialect means them."""
    turns: list[Message] = []
    for message in messages:
        last = turns[-1] if turns else None
        if last is None or last.role != message.role or message.role in ("tool", "system"):
            turns.append(message)
            continue
        content, images = one_after_another(last, message)
        reasoning = "\n".join(filter(None, (last.reasoning, message.reasoning)))
        turns[-1] = Message(message.role, content, reasoning, last.tool_calls + message.tool_calls, images=images)
    return turns


class ToolDefinition(Lenient):
    """A tool that the client runs."""

    unsupported: ClassVar[Unsupported] = {
        "allowed_callers": (None, ["direct"]),
        "defer_loading": (None, False),
        "input_examples": (None, []),
    }

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = _CACHE_CONTROL
    eager_input_streaming: bool | None = Field(None, description="nothing to do: a call is told as it is written")

    def to_core(self, index: int) -> Tool:
        """The same as the core has it. Raises ``HttpError`` for one that Anthropic would run."""
        if self.type not in (None, "custom"):
            raise unsupported_field(f"tools.{index}.type", f"{self.type[:60]} isn't run here; define it as your own")
        if self.input_schema is None:
            raise invalid(f"tools.{index}.input_schema", "send the JSON schema of the tool's input")
        return Tool(self.name, self.description or "", self.input_schema, bool(self.strict))


class ToolChoice(Lenient):
    """Whether the model calls a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Lenient):
    """Whether the model reasons before it answers. A budget is accepted, and isn't held to."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Lenient):
    """A JSON schema that the answer follows."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Lenient):
    """What the answer is to be."""

    effort: str | None = None
    format: OutputFormat | None = None


class Metadata(Lenient):
    """Who asks."""

    user_id: str | None = None


class _Conversation(Lenient):
    """What a request to answer and a request to count have in common."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED

    model: ModelName
    messages: list[InputMessage] = Field(min_length=1)
    system: _Texts | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = _CACHE_CONTROL


def conversation(body: _Conversation) -> list[Message]:
    """The messages of a body. Raises ``HttpError`` for what can't be honoured."""
    check_supported(body)
    system = [Message("system", _joined(body.system))] if body.system else []
    said = [message for index, given in enumerate(body.messages) for message in given.to_core(index)]
    if said[-1].role == "assistant":
        raise invalid("messages", "the last one is the assistant's, which can't be continued here; end with the user's")
    return [*system, *_in_turns(said)]


def tools_of(body: _Conversation) -> Tools | None:
    """The tools of a body; None when there are none. Raises ``HttpError``."""
    if not body.tools:
        if body.tool_choice and body.tool_choice.type in ("any", "tool"):
            raise invalid("tool_choice", "there are no tools to call; send some")
        return None
    functions = tuple(tool.to_core(index) for index, tool in enumerate(body.tools))
    asked = body.tool_choice or ToolChoice(type="auto")
    if asked.type == "tool" and not asked.name:
        raise invalid("tool_choice.name", "say which tool")
    only = asked.name if asked.type == "tool" else None
    parallel = not asked.disable_parallel_tool_use
    match asked.type:
        case "auto" | "none":
            return Tools(functions, asked.type, parallel=parallel)
        case _:
            return Tools(functions, "required", only, parallel)


def effort_of(body: _Conversation) -> str | None:
    """How much the model is to reason; None: as it does. Raises ``HttpError``."""
    effort = body.output_config.effort if body.output_config else None
    if effort not in (None, "low", "medium", "high"):
        raise unsupported_field("output_config.effort", "levels here are low, medium and high")
    match body.thinking.type if body.thinking else "adaptive":
        case "disabled":
            return "none"
        case "enabled":
            return effort or "medium"
        case "adaptive":
            return None if effort == "high" else effort  # which is what the dialect does unasked
    raise unsupported_field("thinking.type", "models here reason before they answer; send enabled or disabled")


class CountBody(_Conversation):
    """A conversation to count the tokens of."""

    def options(self) -> Options:
        """What of the options the prompt depends on. Raises ``HttpError``."""
        return parse_options({"reasoning_effort": effort_of(self)})


class MessagesBody(Options, _Conversation):
    """A conversation to answer. Every option of myllm is a field, also those Anthropic doesn't have."""

    model_config = ConfigDict(extra="allow")

    max_tokens: int = Field(ge=1, le=MAX_TOKENS, description="most tokens to write")
    stop_sequences: list[str] | None = Field(None, description="texts that end the answer, and aren't part of it")
    stream: bool | None = Field(None, description="answer in Server-Sent Events as the text is written (false)")
    metadata: Metadata | None = None
    output_format: OutputFormat | None = Field(None, description="the same as `output_config.format`")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="there is one tier here")

    @property
    def user(self) -> str | None:
        """Who asks; users of one address take turns."""
        return self.metadata.user_id if self.metadata else None

    def options(self) -> Options:
        """How to generate. Without ``fit`` a prompt that doesn't fit is refused: this dialect can't tell what was left
        out. Raises ``HttpError``, ``InvalidOption``.
        """
        values = {name: getattr(self, name) for name in Options.model_fields}
        if self.logprobs is not None:
            raise unsupported_field("logprobs", "this dialect has no place for them; leave it out")
        if self.stop_sequences is not None and self.stop is not None:
            raise invalid("stop_sequences", "there is a stop too; send one of them")
        format = (self.output_config and self.output_config.format) or self.output_format
        if format is not None and self.json_schema is not None:
            raise invalid("output_config.format", "there is a json_schema too; send one of them")
        values["stop"] = self.stop if self.stop_sequences is None else self.stop_sequences or None
        effort = effort_of(self)
        if effort is not None and self.reasoning_effort is not None:
            raise invalid("reasoning_effort", "there is thinking or an effort too; send one of them")
        values["reasoning_effort"] = effort or self.reasoning_effort
        values["json_schema"] = format.json_schema if format else self.json_schema
        return parse_options(values | {"fit": self.fit or "error"})
