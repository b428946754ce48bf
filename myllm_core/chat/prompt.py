"""From a request to the tokens of a prompt: template, literal user text, fitting to the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jinja2

from myllm_core.chat.constraint import Constraint, Constraints
from myllm_core.chat.fallbacks import Fallback, choose_fallback
from myllm_core.chat.images import ImageTokens, Tokens, in_order, marked, shown, split
from myllm_core.chat.literal import Literals, Tokenize, choose_fence
from myllm_core.chat.parts import in_parts, parted_roles
from myllm_core.chat.sandbox import compile_template, render
from myllm_core.chat.tools.parser import ToolCallParser
from myllm_core.chat.tools.rule import tool_rule
from myllm_core.chat.tools.syntax import SYNTAXES, Syntax, choose_syntax
from myllm_core.chat.tools.template import Abilities, abilities_of, as_values, functions, with_instructions
from myllm_core.chat.turns import Turns, check_length, prompt_limit
from myllm_core.engine import ModelFacts
from myllm_core.errors import InvalidRequest, TemplateError, UnsupportedError
from myllm_core.types import (
    ChatRequest,
    CompletionRequest,
    ContextReport,
    Image,
    Message,
    Prompt,
    Request,
    Sampling,
    Tools,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to run: the prompt's tokens, and what the pipeline must know to read the reply."""

    tokens: list[int]
    context: ContextReport
    stop: tuple[str, ...]
    reasoning: bool = False
    inside_reasoning: bool = False
    constraint: Constraint | None = None
    calls: ToolCallParser | None = None
    markers: Mapping[int, bytes] = field(default_factory=dict)
    """What control tokens mean that belong to the syntax of calls; ``piece`` says nothing of them."""
    images: tuple[Image, ...] = ()
    """Those whose rows stand in the prompt, in their order."""


@dataclass(frozen=True, slots=True)
class _Chat:
    """A conversation as its template renders it; three noncharacters mark what is literal, and images."""

    text: str
    fence: tuple[str, str]
    mark: str
    images: list[Image]

    @property
    def plain(self) -> str:
        """What people may read."""
        return shown(self.text, self.mark).replace(self.fence[0], "").replace(self.fence[1], "")


class Preparer:
    """Makes prompts for one loaded model.

    ``prepare`` may run on any one thread; ``tokenize``, ``image_tokens`` and ``pieces`` (the bytes of every token) find
    their own.
    """

    def __init__(
        self,
        facts: ModelFacts,
        tokenize: Tokenize,
        pieces: Callable[[], list[bytes]],
        names: str = "",
        image_tokens: Tokens | None = None,
    ) -> None:
        self._facts = facts
        self._tokenize = tokenize
        self._images = ImageTokens(image_tokens) if image_tokens and "vision" in facts.capabilities else None
        self._constraints = Constraints(facts, pieces, tokenize)
        self._fallback: Fallback | None = None
        self._source = facts.chat_template or ""
        if not self._source:
            self.template_name, self._fallback = choose_fallback(facts.special_tokens, names)
            self._source = self._fallback.source
        else:
            self.template_name = "model"
        in_template = (token for token in facts.added_tokens if token.strip() and token in self._source)
        self._literals = Literals([*facts.special_tokens, *in_template])
        self._reasoning = "<think>" in (*facts.special_tokens, *facts.added_tokens) or "<think>" in self._source

    @cached_property
    def _template(self) -> jinja2.Template:
        return compile_template(self._source)

    @cached_property
    def _parted(self) -> frozenset[str]:
        """The roles whose text the template takes in parts only."""
        return parted_roles(self._source, lambda messages: self._render_as_is(messages, None, {}))

    @cached_property
    def _abilities(self) -> Abilities:
        return abilities_of(self._render)

    @cached_property
    def _syntax(self) -> Syntax:
        """How this model writes calls."""
        return SYNTAXES[choose_syntax(self._source, self._abilities.tools)]

    @cached_property
    def _markers(self) -> dict[str, int]:
        """The ids of those markers of the syntax that are control tokens."""
        special = set(self._facts.special_tokens)
        markers = [
            text for text in (*self._syntax.opens, *self._syntax.closes, *self._syntax.others) if text in special
        ]
        tokens = {marker: self._tokenize(marker, True) for marker in markers}
        return {marker: ids[0] for marker, ids in tokens.items() if len(ids) == 1}

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has a place for a system message; Gemma's and Mistral's early ones refuse it."""
        try:
            probe = [{"role": "system", "content": "\ufddd"}, {"role": "user", "content": "x"}]
            return "\ufddd" in self._render(probe)
        except TemplateError:
            return False

    def prepare(self, request: Request) -> Prepared:
        """The prompt's tokens.

        Raises ``ContextLengthError``, ``TemplateError``, ``InvalidRequest``, ``UnsupportedError``.
        """
        self._check_bias(request.sampling)
        if isinstance(request, ChatRequest):
            return self._prepare_chat(request)
        constraint = self._constraints.make(request.grammar) if request.grammar else None
        tokens = self._raw_tokens(request)
        if not tokens:
            raise InvalidRequest("the prompt is empty; send some text")
        check_length(len(tokens), self._facts.context_size)
        return Prepared(tokens, ContextReport(self._facts.context_size), request.stop, constraint=constraint)

    def _raw_tokens(self, request: CompletionRequest) -> list[int]:
        size = self._facts.vocab_size
        if wrong := next((token for token in request.tokens if not 0 <= token < size), None):
            raise InvalidRequest(f"prompt: this model has no token {wrong}; its tokens are 0 to {size - 1}")
        return list(request.tokens) or self._with_bos(self._literals.plain(request.prompt, self._tokenize))

    def _prepare_chat(self, request: ChatRequest) -> Prepared:
        if not request.messages:
            raise InvalidRequest("there are no messages; send at least one")
        tools = _callable(request)
        constraint = self._constraint(request, tools)
        turns = Turns(request.messages)
        chat, tokens = self._chat_tokens(list(request.messages), request)
        full, size = len(tokens), self._facts.context_size
        limit = prompt_limit(size, request.max_tokens)
        dropped: list[int] = []
        if full > limit and request.fit == "drop" and turns.droppable:
            count = turns.fewest(limit, lambda messages: len(self._chat_tokens(messages, request)[1]))
            dropped = turns.indexes(count)
            chat, tokens = self._chat_tokens(turns.without(count), request)
        check_length(len(tokens), size, full)
        report = ContextReport(size, tuple(dropped), full - len(tokens) if dropped else 0)
        stop = request.stop + (self._fallback.stop if self._fallback else ())
        inside = self._reasoning and chat.text.rstrip().endswith("<think>")
        prepared = Prepared(tokens, report, stop, self._reasoning, inside, constraint, images=tuple(chat.images))
        if tools is None:
            return prepared
        markers = {token: marker.encode() for marker, token in self._markers.items()}
        return replace(prepared, calls=ToolCallParser(self._syntax, tools), markers=markers)

    def _constraint(self, request: ChatRequest, tools: Tools | None) -> Constraint | None:
        if tools is not None:
            rule = tool_rule(self._syntax, tools, self._markers, request.grammar)
            return self._constraints.make(rule, "tools' JSON schema") if rule else None
        return self._constraints.make(request.grammar) if request.grammar else None

    def _check_bias(self, sampling: Sampling) -> None:
        size = self._facts.vocab_size
        if wrong := next((token for token, _ in sampling.logit_bias if token >= size), None):
            raise InvalidRequest(f"logit_bias: this model has no token {wrong}; its tokens are 0 to {size - 1}")

    def describe(self, request: Request) -> Prompt:
        """The whole prompt of a request, though it may not fit the context. Raises as ``prepare``."""
        if isinstance(request, ChatRequest):
            if not request.messages:
                raise InvalidRequest("there are no messages; send at least one")
            chat, tokens = self._chat_tokens(list(request.messages), request)
            return Prompt(chat.plain, tokens, self._facts.context_size)
        tokens = self._with_bos(self._literals.plain(request.prompt, self._tokenize))
        return Prompt(request.prompt, tokens, self._facts.context_size)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a text; the texts of control tokens are read as such only when ``special``."""
        return self._tokenize(text, True) if special and text else self._literals.plain(text, self._tokenize)

    def _chat_tokens(self, messages: list[Message], request: ChatRequest) -> tuple[_Chat, list[int]]:
        chat = self._chat(messages, request)
        tokens: list[int] = []
        images: list[Image] = []
        for part in split(chat.text, chat.mark, len(chat.images)):
            if isinstance(part, int):
                images.append(chat.images[part])
                tokens += self._image_tokens(images[-1])
            else:
                tokens += self._literals.tokenize(part, chat.fence, self._tokenize)
        return replace(chat, images=images), self._with_bos(tokens)

    def _image_tokens(self, image: Image) -> list[int]:
        if self._images is None:
            raise UnsupportedError("this model reads no images; send text only, or use a model with vision")
        return self._images.of(image)

    def _chat(self, messages: list[Message], request: ChatRequest) -> _Chat:
        tools = _callable(request)
        told = functions(tools) if tools else None
        values, images = self._values(messages), in_order(messages)
        *fence, mark = choose_fence([*_texts([values, told])], 3)
        if images:
            values = self._values(marked(messages, mark))
        if tools is not None and not self._abilities.tools:
            values, told = with_instructions(values, tools, self._syntax), None
        values, told = self._literals.protect(values, fence), self._literals.protect(told, fence)
        if not self._takes_system:
            values = _fold_system(values)
        text = self._render(values, told, self._effort(request.reasoning_effort))
        return _Chat(text, (fence[0], fence[1]), mark, images)

    def _values(self, messages: list[Message]) -> list[dict[str, Any]]:
        if any(message.tool_calls or message.role == "tool" for message in messages):
            return as_values(messages, self._syntax, self._abilities)
        return as_values(messages, SYNTAXES["json"], None)

    def _effort(self, effort: str | None) -> dict[str, Any]:
        """What a template is told of the effort. Raises ``UnsupportedError`` where it knows of none."""
        told = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        known = {name: value for name, value in told.items() if effort is not None and name in self._source}
        asks = effort is not None and (effort != "none" or self._reasoning)  # there may be nothing to leave out
        if asks and not known:
            raise UnsupportedError(
                "this model's chat template knows of no reasoning_effort (thinking, think); leave it out"
            )
        return known

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        return self._render_as_is(in_parts(messages, self._parted), tools, more or {})

    def _render_as_is(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, more: Mapping[str, Any]
    ) -> str:
        values = {
            **more,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": True,
            "bos_token": self._facts.bos_text,
            "eos_token": self._facts.eos_text,
        }
        return render(self._template, values)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        bos = self._facts.bos_token
        return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def _callable(request: ChatRequest) -> Tools | None:
    """The tools that the model is told of; none when it isn't to call any."""
    tools = request.tools
    return tools if tools is not None and tools.functions and tools.choice != "none" else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _fold_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages put before the first user message's text, for templates that have no system role."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [message for message in messages if message["role"] != "system"]
    if not system:
        return rest
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
