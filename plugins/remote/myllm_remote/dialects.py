"""What servers take beyond the fields of OpenAI's own API, and how they can be told apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STANDARD = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"})
"""Sampling options that every server has, under the same names."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a kind of server differs.

    ``sampling`` maps our names to its own. ``grammars`` are the kinds beside JSON schema that it takes, as fields of
    our names. ``reasoning`` says whether messages may carry it. ``completion_limit`` is what a raw prompt without a
    limit is sent with: ``context`` (as many tokens as fit), ``null``, or empty when the server would stop after 16. A
    server with our ``same_defaults`` is sent temperature and seed, and what isn't a default: its engine may have fewer
    options. ``limit`` is its name of max_tokens, ``top_k_off`` its value for no top_k.
    """

    sampling: dict[str, str] = field(default_factory=dict)
    grammars: frozenset[str] = frozenset()
    reasoning: bool = True
    completion_limit: str = ""
    limit: str = "max_tokens"
    top_k_off: int = 0
    same_defaults: bool = False


DIALECTS = {
    "myllm": Dialect(
        {name: name for name in ("top_k", "min_p", "repeat_penalty", "repeat_last_n")},
        frozenset({"regex", "lark"}),
        completion_limit="context",
        same_defaults=True,
    ),
    "llamacpp": Dialect(
        {name: name for name in ("top_k", "min_p", "repeat_penalty", "repeat_last_n")}, completion_limit="context"
    ),
    "vllm": Dialect({"top_k": "top_k", "min_p": "min_p"}, completion_limit="null"),
    "sglang": Dialect({"top_k": "top_k", "min_p": "min_p"}, top_k_off=-1),
    "ollama": Dialect(),
    "openai": Dialect(reasoning=False, limit="max_completion_tokens"),
    "other": Dialect(reasoning=False),
}

_OWNERS = {
    "myllm": "myllm",
    "llamacpp": "llamacpp",
    "vllm": "vllm",
    "sglang": "sglang",
    "library": "ollama",
    "openai": "openai",
    "openai-internal": "openai",
    "system": "openai",
}
_SIZES = ("max_model_len", "context_length", "context_window", "max_context_length")


def dialect_of(entry: dict[str, Any]) -> str:
    """Which dialect the server of this entry of ``/models`` speaks, by the owner that it names."""
    return _OWNERS.get(str(entry.get("owned_by")), "other")


def context_of(entry: dict[str, Any]) -> int:
    """How many tokens a model takes, by its entry of ``/models``; 0 when it doesn't say."""
    meta = entry.get("meta")
    trained = meta.get("n_ctx_train") if isinstance(meta, dict) else None
    places = [*(entry.get(name) for name in _SIZES), trained]
    return next((size for size in places if type(size) is int and 0 < size < 2**31), 0)


def honoured(dialect: str) -> frozenset[str]:
    """The sampling options that a server of this dialect takes."""
    return STANDARD | DIALECTS[dialect].sampling.keys()
