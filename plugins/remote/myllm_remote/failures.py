"""What a server says when it refuses, as an error of myllm's tree with the server's own words."""

from __future__ import annotations

import json
import re
from typing import Any

from myllm_core.errors import (
    ERRORS,
    ConfigError,
    ContextLengthError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    MyllmError,
    NetworkError,
    Overloaded,
    UnsupportedError,
)
from myllm_core.transfer.urls import Target
from myllm_remote.keys import variables

_MAX_WORDS = 500
_MAX_WAIT = 3600
_TOO_LONG = re.compile(r"context.{0,20}(length|size|window)|maximum context|too many tokens|prompt is too long", re.I)
_NUMBERS = re.compile(r"\d{2,9}")
_SIZE = re.compile(r"context (?:length|size|window)(?: of| is| is only|:)* \(?(\d{2,9})|context holds (\d{2,9})", re.I)
_PROMPT = re.compile(
    r"(\d{1,9}) (?:tokens )?(?:in|from) the (?:input )?(?:messages|prompt)|(\d{1,9}) input tokens"
    r"|(?:input|prompt|messages)\D{0,20} \(?(\d{1,9}) tokens",
    re.I,
)
_REQUESTED = re.compile(r"requested (?:a total of )?(\d{1,9}) tokens", re.I)
_PLAIN = {408: DeadlineExceeded, 504: DeadlineExceeded, 501: UnsupportedError, 502: NetworkError}


def failure(
    target: Target, status: int, headers: dict[str, str], body: bytes, key: str = "", optional: bool = False
) -> MyllmError:
    """The error for an answer with a status other than 200; ``optional`` paths may not be there at all."""
    where = target.authority
    code, words = _said(body)
    words = _clean(words, key)
    said = f"{where} says: {words}" if words else f"{where} answered with status {status}"
    if 300 <= status < 400:
        return NetworkError(f"{where} leads elsewhere (status {status}), which isn't followed; give its real address")
    if status in (401, 403):
        return ConfigError(f"{where} wants another key; set {variables(target)[0]} to it. {said}")
    if status in (404, 405) and optional:
        return UnsupportedError(f"{where} can't do that: {words or f'status {status}'}")
    if status == 404:
        return EngineError(f"{said}; if the model has gone there, pull it again")
    if status in (429, 503):
        return Overloaded(said, retry_after=_wait(headers))
    if 400 <= status < 500 and status != 408:
        return _refusal(code, said, words, _given_sizes(body))
    return _PLAIN.get(status, EngineError)(said)


def mid_stream(where: str, error: Any, key: str = "") -> MyllmError:
    """The error that a stream ended with."""
    code, words = _said(json.dumps({"error": error}).encode())
    said = f"{where} gave up: {_clean(words, key) or 'it gave no reason'}"
    return _refusal(code, said, words) if code in ERRORS or code == "context_length_exceeded" else EngineError(said)


def _refusal(code: str, said: str, words: str, numbers: dict[str, int] | None = None) -> MyllmError:
    if code in ("context_length_exceeded", "context_length") or _TOO_LONG.search(words):
        return ContextLengthError(said, **(numbers or _sizes(words)))
    known = ERRORS.get(code, InvalidRequest)
    return (known if issubclass(known, InvalidRequest) else InvalidRequest)(said)


def _given_sizes(body: bytes) -> dict[str, int]:
    """Both numbers where llama-server gives them apart from its words."""
    try:
        error = json.loads(body)["error"]
        return {"context_size": int(error["n_ctx"]), "prompt_tokens": int(error["n_prompt_tokens"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _sizes(words: str) -> dict[str, int]:
    """Both numbers of a prompt that is too long, by the words around them, or when there are just these two."""
    size, prompt = _SIZE.search(words), _PROMPT.search(words) or _REQUESTED.search(words)
    if size and prompt:
        found = [int(next(filter(None, match.groups()))) for match in (size, prompt)]
        return {"context_size": found[0], "prompt_tokens": found[1]}
    numbers = sorted({int(number) for number in _NUMBERS.findall(words)})
    return {"context_size": numbers[0], "prompt_tokens": numbers[1]} if len(numbers) == 2 else {}


def _said(body: bytes) -> tuple[str, str]:
    """Code and message of an error document, in any of the shapes that servers use."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
        return "", "" if text.lstrip().startswith("<") else text
    for name in ("error", "detail", "message"):
        value = document.get(name) if isinstance(document, dict) else None
        if isinstance(value, dict):
            return str(value.get("code") or ""), str(value.get("message") or value)
        if value:
            return str(document.get("code") or ""), value if isinstance(value, str) else json.dumps(value)
    return "", json.dumps(document) if document else ""


def _clean(text: str, key: str) -> str:
    if key:
        text = text.replace(key, "…")
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * _MAX_WORDS])
    text = " ".join(text.split())
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"


def _wait(headers: dict[str, str]) -> int:
    text = headers.get("retry-after", "")
    return min(max(int(text), 1), _MAX_WAIT) if text.isascii() and text.isdigit() and len(text) < 6 else 1
