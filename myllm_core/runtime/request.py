"""What a model is asked: a conversation or prompt and its options, made into a request that its engine can heed."""

from __future__ import annotations

from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import InvalidOption, UnsupportedError
from myllm_core.models.manifest import Model
from myllm_core.options import Options, grammar, sampling
from myllm_core.runtime.choose import sampling_of
from myllm_core.runtime.slot import Lease
from myllm_core.types import ChatRequest, CompletionRequest, Message, Request, Tools


def limit_tokens(merged: Options, asked: Options | None, most: int) -> Options:
    """``merged`` with at most ``most`` tokens (0: no limit). Raises ``InvalidOption`` when more were asked for."""
    if not most:
        return merged
    if asked is not None and (asked.max_tokens or 0) > most:
        raise InvalidOption(f"option max_tokens: at most {most} here (setting max_tokens)", max_tokens=most)
    return merged.model_copy(update={"max_tokens": min(merged.max_tokens or most, most)})


def make_request(
    model: Model,
    asked: tuple[Message, ...] | str | list[int],
    options: Options,
    engine: type[Engine],
    tools: Tools | None = None,
) -> Request:
    """The request to an engine. Raises ``UnsupportedError`` for what engines of its kind can't heed."""
    how = sampling(options, sampling_of(engine, model), engine.name)
    stop, endless = tuple(options.stop or ()), bool(options.ignore_eos)
    if endless and not issubclass(engine, TokenEngine):
        raise UnsupportedError(f"the {engine.name} engine can't ignore_eos; it ends replies itself")
    if not isinstance(asked, tuple):
        if options.reasoning_effort is not None:
            raise UnsupportedError("a raw prompt has no reasoning_effort; leave it out, or send messages to chat")
        if isinstance(asked, list) and not issubclass(engine, TokenEngine):
            raise UnsupportedError(f"the {engine.name} engine takes no tokens; send text")
        text, tokens = (asked, ()) if isinstance(asked, str) else ("", tuple(asked))
        rule = grammar(options)
        return CompletionRequest(text, how, options.max_tokens, stop, options.logprobs, rule, endless, tokens)
    system = model.manifest.system
    if system and not any(message.role == "system" for message in asked):
        asked = (Message("system", system), *asked)
    fit = options.fit or "drop"
    rule, effort = grammar(options), options.reasoning_effort
    if effort is not None and not issubclass(engine, TokenEngine):
        raise UnsupportedError(f"the {engine.name} engine has no option reasoning_effort; leave it out")
    return ChatRequest(asked, how, options.max_tokens, stop, options.logprobs, fit, rule, endless, tools, effort)


def check_live(lease: Lease, request: Request) -> None:
    """Raises ``UnsupportedError`` when the loaded model can't do what is asked of it."""
    if request.logprobs is not None:
        require(lease, "logprobs", "gives no log probabilities")
    if request.grammar is not None:
        require(lease, "grammar", "can't be held to a JSON schema or grammar")
    if isinstance(request, ChatRequest):
        if any(message.images for message in request.messages):
            require(lease, "vision", "reads no images; send text only, or use a model with vision")
        if request.tools is not None:
            _check_tools(lease, request.tools)


def _check_tools(lease: Lease, tools: Tools) -> None:
    """With a TokenEngine the core finds the calls in the reply; other engines do so themselves, or don't."""
    if not issubclass(lease.handle.order.engine, TokenEngine):
        require(lease, "tools", "calls no tools; leave them out, or use another engine")
    elif tools.choice == "required" or any(tool.strict for tool in tools.functions):
        require(lease, "grammar", "can't be held to a tool's schema; use tool_choice auto, without strict")


def require(lease: Lease, capability: str, otherwise: str) -> None:
    """Raises ``UnsupportedError``, which says ``otherwise`` of the model, when it hasn't the capability."""
    if capability not in lease.handle.facts["capabilities"]:
        raise UnsupportedError(f"{lease.handle.order.model.name} on the {lease.engine} engine {otherwise}")
