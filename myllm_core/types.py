"""The values that travel between the parts: messages in, events out.

Plain dataclasses: cheap to import, cheap to make once per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from myllm_core.errors import MyllmError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called; ``arguments`` is a JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message: the bytes of a PNG, JPEG, GIF or WebP file.

    It stands after the first ``at`` characters of the message's text; images at the same place stand in their order.
    """

    data: bytes
    media_type: str
    at: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. One of the role ``tool`` has the id of the call whose result it is."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: every value resolved, nothing left to a default.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. Penalties look at the
    last ``repeat_last_n`` tokens. ``seed`` makes a run repeatable whatever else is in the batch. ``logit_bias`` has
    tokens and what is added to their logits, before all else.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply is held to: ``text`` is a JSON schema, a regular expression, or a grammar in llguidance's Lark."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call.

    ``parameters`` is the JSON schema of its arguments, an object; None: it takes none. With ``strict`` arguments always
    follow the schema, also where the model is free to call or not.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that a model may call in its reply, and whether it has to.

    ``choice`` is ``auto`` (text, calls or both), ``none`` (text only) or ``required`` (calls only, whose arguments
    follow their schemas). ``only`` names the one function that a required call is of. Without ``parallel`` a reply has
    one call at most.
    """

    functions: tuple[Tool, ...]
    choice: Literal["auto", "none", "required"] = "auto"
    only: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What an engine is asked: the whole conversation, and how to go on.

    ``max_tokens`` None means: until the model stops or the context is full. ``logprobs`` None means
    none, n means the chosen token's and the n best others'. ``fit`` says what happens when the
    conversation is longer than the context: ``"drop"`` leaves out the oldest turns and reports them,
    ``"error"`` refuses. The answer (not the reasoning before it) follows ``grammar``, if there is one.
    With ``ignore_eos`` the model's own end doesn't end a reply without grammar: it goes on to its limit.
    ``tools`` are what it may call. ``reasoning_effort`` is for chat templates that know of it.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    fit: Literal["drop", "error"] = "drop"
    grammar: Grammar | None = None
    ignore_eos: bool = False
    tools: Tools | None = None
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A raw prompt to continue, without a chat template: a text or, where there are ``tokens``, these as they are."""

    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    ignore_eos: bool = False
    tokens: tuple[int, ...] = ()


Request = ChatRequest | CompletionRequest


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; ``cached_tokens`` of the prompt's weren't computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds: waiting for a turn, reading the prompt, writing the answer."""

    queue: float = 0.0
    prompt: float = 0.0
    generation: float = 0.0


@dataclass(frozen=True, slots=True)
class ContextReport:
    """What was done to fit the context: ``dropped`` are indexes into the request's messages.

    ``shifted_tokens`` of prompt and reply were forgotten while the reply was written, where an engine goes on so.
    """

    context_size: int
    dropped: tuple[int, ...] = ()
    dropped_tokens: int = 0
    shifted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural-log probability, before temperature and truncation."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token of one position, and the most likely ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Something long goes on: ``stage`` is ``queue``, ``load`` or ``prompt``; ``fraction`` 0 to 1, if known.

    The one with ``usage`` says that the prompt has been read, and what it took; it comes with the first token.
    """

    stage: str
    fraction: float | None = None
    detail: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer."""

    text: str
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of the model's reasoning, apart from the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: id and name in the first of an index (from 0), then argument text.

    The arguments of an index together are the JSON text of an object, unless the reply ended before the call did, or
    the model wrote something else.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a request, always exactly one.

    ``stop`` is the stop string that ended it, if one did. ``error`` is set exactly when ``reason`` is ``error``.
    """

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    context: ContextReport | None = None
    stop: str | None = None
    seed: int | None = None
    engine: str | None = None
    error: MyllmError | None = None


Event = Progress | TextDelta | ReasoningDelta | ToolCallDelta | Finish


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector of floats per input, in order, all of one length."""

    vectors: list[list[float]]
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """How well each document answers a query, in their order: more is better.

    ``by`` says whether they are the model's own, in whatever range, or the cosines of its embeddings (-1 to 1).
    """

    scores: list[float]
    prompt_tokens: int = 0
    by: Literal["model", "embeddings"] = "model"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads for a request: the text, and its tokens of a context of ``context_size``."""

    text: str
    tokens: list[int]
    context_size: int


JSON = dict[str, Any]
