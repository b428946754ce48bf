"""How long a prompt is for the server that is to read it, and how long one may be: asked in the words of its kind.

API: myllm's ``/api/count``; vLLM's ``/tokenize``; llama-server's ``/apply-template``, ``/tokenize`` and ``/props``.
"""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from myllm_core import ChatRequest, Message
from myllm_core.errors import ContextLengthError, MyllmError
from myllm_remote.bodies import conversation
from myllm_remote.spec import Spec
from myllm_remote.upstreams import Upstreams

log = logging.getLogger("myllm.remote")

_MARGIN = 1024
"""Tokens that a template may add to a conversation of its own accord."""
Count = Callable[[Upstreams, Spec, ChatRequest], tuple[int, int]]


class Measure:
    """Counts prompts. ``size`` is the context in tokens, 0 while nobody has said; a ``fixed`` one stays."""

    def __init__(self, spec: Spec, upstreams: Upstreams, fixed: int) -> None:
        self.size = fixed or _first_size(spec, upstreams) or spec.context_size
        self._fixed = fixed > 0
        self._spec, self._upstreams = spec, upstreams
        self._count = _COUNTS.get(spec.dialect)

    def learn(self, size: object) -> None:
        """Take a size that the server named, unless it is fixed."""
        if not self._fixed and type(size) is int and size > 0:
            self.size = size

    def surely_fits(self, request: ChatRequest) -> bool:
        """Whether prompt and reply fit whatever the tokens are, since none is shorter than a byte."""
        if any(message.images for message in request.messages):
            return False
        said = json.dumps(conversation(self._spec, request), ensure_ascii=False).encode("utf-8", "replace")
        return len(said) + _MARGIN + (request.max_tokens or 0) < self.size * 3 // 4

    def tokens(self, request: ChatRequest) -> int | None:
        """How many tokens the prompt has; None where the server can't say."""
        sees = any(message.images for message in request.messages)
        if self._count is None or (sees and self._spec.dialect != "myllm"):
            return None
        try:
            count, size = self._count(self._upstreams, self._spec, request)
        except ContextLengthError:
            raise
        except (MyllmError, ValueError, TypeError, KeyError) as error:
            log.debug("%s can't count a prompt: %s", self._spec.model, error)
            return None
        self.learn(size)
        return count


def _first_size(spec: Spec, upstreams: Upstreams) -> int:
    """What llama-server runs with, which may be less than the model was trained for."""
    if spec.dialect != "llamacpp":
        return 0
    try:
        size = upstreams.ask("/props")["default_generation_settings"]["n_ctx"]
    except (MyllmError, ValueError, TypeError, KeyError):
        return 0
    return size if type(size) is int and 0 < size < 2**31 else 0


def sees(spec: Spec, upstreams: Upstreams) -> bool:
    """Whether the model reads images, as the server says; not where it says nothing of that."""
    try:
        if spec.dialect == "llamacpp":
            return upstreams.ask("/props")["modalities"]["vision"] is True
        path = {"myllm": "/ollama/api/show", "ollama": "/api/show"}.get(spec.dialect)
        return path is not None and "vision" in upstreams.ask(path, {"model": spec.model})["capabilities"]
    except (MyllmError, ValueError, TypeError, KeyError):
        return False


def _by_myllm(upstreams: Upstreams, spec: Spec, request: ChatRequest) -> tuple[int, int]:
    tools = request.tools.functions if request.tools and request.tools.choice != "none" else ()
    told = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
        for tool in tools
    ]
    body = {"model": spec.model, "messages": [_native(message) for message in request.messages], "tools": told}
    answer = upstreams.ask("/api/count", body)
    return int(answer["prompt_tokens"]), int(answer["context_size"])


def _native(message: Message) -> dict[str, Any]:
    images = [
        {"data": b64encode(image.data).decode(), "type": image.media_type or None, "at": image.at}
        for image in message.images
    ]
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    shape = {"role": message.role, "content": message.content, "images": images, "tool_calls": calls}
    return shape | ({"tool_call_id": message.tool_call_id} if message.tool_call_id is not None else {})


def _by_vllm(upstreams: Upstreams, spec: Spec, request: ChatRequest) -> tuple[int, int]:
    body = {"model": spec.model, "add_generation_prompt": True, **conversation(spec, request)}
    answer = upstreams.ask("/tokenize", body)
    return int(answer["count"]), int(answer["max_model_len"])


def _by_llamacpp(upstreams: Upstreams, spec: Spec, request: ChatRequest) -> tuple[int, int]:
    prompt = upstreams.ask("/apply-template", {"model": spec.model, **conversation(spec, request)})["prompt"]
    body = {"model": spec.model, "content": prompt, "add_special": True, "parse_special": True}
    return len(upstreams.ask("/tokenize", body)["tokens"]), 0


_COUNTS: dict[str, Count] = {"myllm": _by_myllm, "vllm": _by_vllm, "llamacpp": _by_llamacpp}
