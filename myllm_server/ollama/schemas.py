"""Bodies of the Ollama dialect: strict in types, lenient in fields, and what can't be honoured is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, ConfigDict, Field, PlainValidator

from myllm_core.options import Options, parse_options
from myllm_core.settings import parse_duration
from myllm_core.types import Image, Message, Tool, ToolCall, Tools
from myllm_server.brief import Brief
from myllm_server.errors import HttpError
from myllm_server.lenient import Lenient, Unsupported, check_supported, invalid, unsupported_field
from myllm_server.pictures import from_base64
from myllm_server.schemas import MAX_INPUTS

_SEEDS = 2**32
_WHOLE_CONTEXT = 2**20
_LONGEST_TIME = 60  # characters
_GO_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_UNSUPPORTED: Unsupported = {
    "context": (None, []),
    "height": (None, 0),
    "insecure": (None, False),
    "shift": (None, False),
    "steps": (None, 0),
    "suffix": (None, ""),
    "template": (None, ""),
    "verbose": (None, False),
    "width": (None, 0),
}
_UNSUPPORTED_OPTIONS: Unsupported = {
    "draft_num_predict": (None, 0),
    "embedding_only": (None, False),
    "f16_kv": (None, True),
    "logits_all": (None, False),
    "low_vram": (None, False),
    "main_gpu": (None, 0),
    "mirostat": (None, 0),
    "mirostat_eta": (None, 0.1),
    "mirostat_tau": (None, 5.0),
    "numa": (None, False),
    "penalize_newline": (None, False),
    "tfs_z": (None, 1, 1.0),
    "typical_p": (None, 1, 1.0),
    "use_mlock": (None, False),
    "vocab_only": (None, False),
}
_LOAD_OPTIONS = {
    "num_batch": "n_batch",
    "num_ctx": "n_ctx",
    "num_gpu": "n_gpu_layers",
    "num_thread": "n_threads",
    "use_mmap": "use_mmap",
}
"""What is said with a request here, but done when the model is loaded, by the names that engines have for it."""


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or len(str(value)) > _LONGEST_TIME:
        raise ValueError("write seconds, 5m, 1h30m, 0, or -1 for ever")
    if not isinstance(value, str):
        return parse_duration(value)
    text = value.strip().removeprefix("+")
    sign, bare = text[:1] == "-", text.removeprefix("-")
    parts = _GO_PART.findall(bare)
    if parts and "".join(number + unit for number, unit in parts) == bare:
        return float("inf") if sign else sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    return parse_duration(text)


KeepAlive = Annotated[
    float | None,
    PlainValidator(_seconds, json_schema_input_type=str | float | None),
    Field(description="how long the model stays loaded after this: seconds, `5m`, `1h30m`, 0 or -1 (for ever)"),
]
_Name = Annotated[str, Field(min_length=1, max_length=200, description="an installed model")]


class ModelOptions(Options, Brief):
    """How to generate, by Ollama's names; every option of myllm is one too."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED_OPTIONS

    model_config = ConfigDict(extra="allow")

    num_ctx: int | None = Field(None, ge=1, description="size of the context: the model is loaded again for another")
    num_batch: int | None = Field(None, ge=1, description="most tokens of a prompt in one step, for loading")
    num_gpu: int | None = Field(None, ge=-1, description="layers on the GPU, for loading")
    num_thread: int | None = Field(None, ge=0, description="processor threads, for loading")
    use_mmap: bool | None = Field(None, description="map the file into memory, for loading")
    num_keep: int | None = Field(None, description="nothing to do: a prompt isn't shifted")
    num_predict: int | None = Field(None, description="most tokens to write; 0 and less: until done")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes the answer repeatable; -1 is random")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="only the k likeliest tokens; 0 and -1 are off")
    repeat_last_n: int | None = Field(
        None, ge=-1, le=2**20, description="how many recent tokens the penalties see; -1 is all"
    )

    def load_options(self) -> dict[str, Any]:
        """What the model must be loaded with."""
        given = {name: getattr(self, field) for field, name in _LOAD_OPTIONS.items()}
        return {name: value for name, value in given.items() if value is not None}

    def to_core(self, **resolved: Any) -> Options:
        """The same as the core has it. Raises ``HttpError`` for what can't be honoured, ``InvalidOption``."""
        values = {name: getattr(self, name) for name in Options.model_fields}
        if self.num_predict is not None:
            if self.max_tokens is not None:
                raise invalid("options.num_predict", "there is a max_tokens too; send one of them")
            values["max_tokens"] = self.num_predict if self.num_predict > 0 else None
        values["seed"] = None if self.seed in (None, -1) else self.seed % _SEEDS
        values["top_k"] = 0 if self.top_k == -1 else self.top_k
        values["repeat_last_n"] = _WHOLE_CONTEXT if self.repeat_last_n == -1 else self.repeat_last_n
        for name, value in resolved.items():
            if value is not None and values[name] is not None:
                raise invalid(f"options.{name}", "it is said outside of the options too; send one of them")
            values[name] = value if value is not None else values[name]
        return parse_options(values)


class CalledFunction(Lenient):
    """Which function, with what."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    index: int | None = None


class CalledTool(Lenient):
    """A tool call of an earlier reply."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class ChatMessage(Lenient):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = ""
    images: list[str] | None = Field(None, description="files in base64, which stand before the text")
    thinking: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as the core has them.

    This dialect tells the results of calls apart by names and order; the calls get ids here. Raises ``HttpError``.
    """
    told: list[Message] = []
    waiting: list[ToolCall] = []
    for index, message in enumerate(messages):
        content, images = message.content or "", pictures(message.images, f"messages.{index}.images")
        if message.role == "tool":
            call = _answered(index, message, waiting)
            told.append(Message("tool", content, tool_call_id=call.id, images=images))
            continue
        if message.tool_calls and message.role != "assistant":
            raise invalid(f"messages.{index}.tool_calls", "only an assistant's message has them")
        waiting = [_call(index, at, call) for at, call in enumerate(message.tool_calls or ())]
        told.append(Message(message.role, content, message.thinking or "", tuple(waiting), images=images))
    return told


def pictures(images: Sequence[str] | None, where: str) -> tuple[Image, ...]:
    """Images as the core has them. Raises ``HttpError``."""
    return tuple(Image(from_base64(f"{where}.{at}", data), "") for at, data in enumerate(images or ()))


def _call(index: int, at: int, call: CalledTool) -> ToolCall:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return ToolCall(call.id or f"call_{index}_{at}", call.function.name, arguments)


def _answered(index: int, message: ChatMessage, waiting: list[ToolCall]) -> ToolCall:
    """The call that a message is the result of: by id, else by name, else the next one. It waits no longer then."""
    wanted, name = message.tool_call_id, message.tool_name
    found = next((call for call in waiting if wanted in (None, call.id) and name in (None, call.name)), None)
    if found is None:
        raise invalid(f"messages.{index}", "no tool call waits for this result; send the message with the call before")
    waiting.remove(found)
    return found


class FunctionDefinition(Lenient):
    """What a tool is called, does and takes."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolDefinition(Lenient):
    """A function that the model may call."""

    type: Literal["function"] | None = None
    function: FunctionDefinition

    def to_core(self) -> Tool:
        """The same as the core has it."""
        return Tool(self.function.name, self.function.description or "", self.function.parameters)


class _Body(Lenient):
    unsupported: ClassVar[Unsupported] = _UNSUPPORTED


class _Generation(_Body):
    model: _Name
    stream: bool | None = Field(None, description="answer in lines of JSON as the text is written (true)")
    options: ModelOptions | None = None
    format: str | dict[str, Any] | None = Field(None, description="`json`, or a JSON schema that the answer follows")
    keep_alive: KeepAlive = None
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="whether the model reasons before it answers"
    )
    truncate: bool | None = Field(None, description="leave out the oldest turns of what is too long (false)")
    logprobs: bool | None = Field(None, description="log probabilities of the tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many others; needs `logprobs`")

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream, as it is when nothing is said."""
        return self.stream is not False

    def load_options(self) -> dict[str, Any]:
        """What the model must be loaded with."""
        return self.options.load_options() if self.options else {}

    def core_options(self) -> Options:
        """How to generate. What is too long is refused, unless ``truncate`` says that it may be cut. Raises
        ``HttpError``, ``InvalidOption``.
        """
        check_supported(self)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "it needs logprobs: true")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        given = self.options or ModelOptions.model_validate({})
        fit = None if given.fit else ("drop" if self.truncate else "error")
        effort = self.think if isinstance(self.think, str | None) else ("medium" if self.think else "none")
        return given.to_core(json_schema=self._schema(), logprobs=logprobs, fit=fit, reasoning_effort=effort)

    def _schema(self) -> dict[str, Any] | None:
        if self.format in (None, ""):
            return None
        if isinstance(self.format, dict):
            return self.format
        if self.format != "json":
            raise invalid("format", 'send "json" or a JSON schema')
        return {"type": "object"}


class ChatBody(_Generation):
    """A conversation to answer. Without messages the model is loaded, or unloaded with a ``keep_alive`` of 0."""

    messages: list[ChatMessage] | None = None
    tools: list[ToolDefinition] | None = None

    def core_tools(self) -> Tools | None:
        """The tools as the core has them; None when there are none."""
        return Tools(tuple(tool.to_core() for tool in self.tools)) if self.tools else None


class GenerateBody(_Generation):
    """A prompt to answer, or with ``raw`` to continue as it is. Without one the model is loaded or unloaded."""

    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = Field(None, description="files in base64, which stand before the prompt")
    raw: bool | None = Field(None, description="continue the prompt as it is, without the model's chat template")

    def check_raw(self) -> None:
        """Raise ``HttpError`` for what a raw prompt can't have."""
        if self.raw and (self.system or self.think is not None):
            raise invalid("raw", "a raw prompt has no system message and no thinking; leave them out")
        if self.raw and self.images:
            raise unsupported_field("images", "a raw prompt has no images; leave out raw, or send them to chat")


class EmbedBody(_Body):
    """Texts to make vectors of."""

    model: _Name
    input: str | Annotated[list[str], Field(max_length=MAX_INPUTS)] = ""
    truncate: bool | None = Field(None, description="cut what is longer than the model reads (false)")
    dimensions: int | None = Field(None, ge=1, description="only the model's own number")
    options: ModelOptions | None = None
    keep_alive: KeepAlive = None


class EmbeddingsBody(_Body):
    """A text to make a vector of."""

    model: _Name
    prompt: str | None = None
    options: ModelOptions | None = None
    keep_alive: KeepAlive = None


_ByEitherName = Field(validation_alias=AliasChoices("model", "name"), min_length=1, max_length=200)


class NamedBody(_Body):
    """A body that only says which model."""

    model: str = _ByEitherName


class PullBody(NamedBody):
    """What to install: a name that ``myllm pull --list`` shows, or ``hf.co/owner/repo:quantization``."""

    stream: bool | None = Field(None, description="answer in lines of JSON as it goes on (true)")

    def reference(self) -> str:
        """The same as the core has it."""
        for hub in ("hf.co/", "huggingface.co/"):
            if self.model.lower().startswith(hub):
                return f"hf:{self.model[len(hub) :]}"
        return self.model


class CopyBody(_Body):
    """What to copy, and to which name."""

    source: _Name
    destination: str = Field(min_length=1, max_length=200, description="the new name")


def options_for_embedding(options: ModelOptions | None) -> dict[str, Any]:
    """What the model must be loaded with; the other options mean nothing for vectors."""
    return options.load_options() if options else {}


def refuse_dimensions(wanted: int | None, length: int) -> None:
    """Raise ``HttpError`` for vectors of another length than the model's."""
    if wanted not in (None, length):
        raise unsupported_field("dimensions", f"this model's vectors have {length}; leave it out")


def not_here(what: str) -> HttpError:
    """The refusal of a reference that may not be pulled over HTTP."""
    return HttpError(
        400, "invalid_reference", f"{what[:60]!a} can't be pulled over HTTP; send a name or hf.co/owner/repo"
    )
