"""The tokenizer in a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``, checked before anyone uses it.

Formats: the keys ``tokenizer.ggml.*`` of the GGUF specification; how text is cut before its merges is named by
``tokenizer.ggml.pre``, whose patterns are those of llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from myllm_core.errors import IntegrityError, UnsupportedError

Get = Callable[[str], Any]

_CONTROL, _USER_DEFINED = 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3.format("{1,3}"),),
    "qwen2": (_LLAMA3.format(""),),
}
"""The patterns that cut a text one after the other: every match is a piece, and so is what lies between."""
_WHOLE_WORDS = frozenset({"llama-bpe"})
"""Kinds that take a piece as one token when it is one, whatever the merges say."""
SAMPLES = (
    "Hello, world! It's 12345.678 o'clock, I'LL go",
    "  two spaces,\ttabs\t\tand\n\n\nlines \r\n   end   ",
    "def f(x):\n    return x**2  # naïve café, Straße, Ελλάδα, Привет",
    "漢字とかな 한국어 العربية हिन्दी 👋🏽👨‍👩‍👧 ½ ² ①",
    'http://a.b/c?d=e&f=%20 $1,000.00 -- ... !!! <tag/> {"k": [1, 2]}',
    "e\u0301 \u00a0\u3000\u200b \ufeffBOM _under_score_ CamelCase don't WE'VE",
)


def check_kind(get: Get) -> str:
    """The kind of tokenizer that a file has. Raises ``UnsupportedError`` for one that isn't known here."""
    model, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in _CUTS:
        raise UnsupportedError(
            f"its tokenizer is of the kind {model!s:.40}/{pre!s:.40}; known are gpt2 with {', '.join(_CUTS)}: pull the "
            "safetensors version"
        )
    return str(pre)


def tokenizer_files(get: Get) -> dict[str, dict[str, Any]]:
    """The files by name. Raises ``UnsupportedError``, and ``IntegrityError`` when they wouldn't read text alike."""
    pre = check_kind(get)
    texts, types, merges = (get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    document = _tokenizer(pre, texts, types or [1] * len(texts), merges)
    _check(pre, texts, merges, document)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(get("tokenizer.ggml.add_bos_token")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (number := get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{name}_token"] = texts[number]
    if template := get("tokenizer.chat_template"):
        config["chat_template"] = template
    if length := get(f"{get('general.architecture')}.context_length"):
        config["model_max_length"] = length
    return {"tokenizer.json": document, "tokenizer_config.json": config}


def _tokenizer(pre: str, texts: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in _CUTS[pre]]
    added = [
        {
            "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre in _WHOLE_WORDS,
        "vocab": {text: number for number, text in enumerate(texts)},
        "merges": [_pair(merge) for merge in merges],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]}, "post_processor": None,
        "decoder": byte_level, "model": model,
    }  # fmt: skip


def _pair(merge: str) -> list[str]:
    left, _, right = merge.partition(" ")
    return [left, right]


def _check(pre: str, texts: list[str], merges: list[str], document: dict[str, Any]) -> None:
    """Whether the tokenizer reads the samples as the file's own rules, applied one by one, do."""
    import json

    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(document))
    rules = _Rules(pre, texts, merges)
    for sample in SAMPLES:
        if made.encode(sample, add_special_tokens=False).ids != rules.tokens(sample):
            raise IntegrityError(
                "its tokenizer can't be written so that it reads text alike; pull the safetensors version"
            )


class _Rules:
    """The tokenizer of a GGUF file in its plainest form."""

    def __init__(self, pre: str, texts: list[str], merges: list[str]) -> None:
        self._pre = pre
        self._ids = {text: number for number, text in enumerate(texts)}
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(map(_pair, merges))}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [byte for byte in range(256) if byte not in plain]
        self._chars = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(rest)}

    def tokens(self, text: str) -> list[int]:
        pieces = [text]
        for cut in _CUTS[self._pre]:
            pieces = [part for piece in pieces for part in _isolated(cut, piece)]
        return [self._ids[part] for piece in pieces for part in self._merged(piece)]

    def _merged(self, piece: str) -> list[str]:
        parts = [self._chars[byte] for byte in piece.encode()]
        if self._pre in _WHOLE_WORDS and "".join(parts) in self._ids:
            return ["".join(parts)]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair) for pair in zip(parts, parts[1:], strict=False)]
            known = [rank for rank in ranks if rank is not None]
            if not known:
                break
            at = ranks.index(min(known))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def _isolated(cut: str, text: str) -> Iterator[str]:
    import regex

    at = 0
    for found in regex.finditer(cut, text):
        if found.start() > at:
            yield text[at : found.start()]
        if found[0]:
            yield found[0]
        at = found.end()
    if at < len(text):
        yield text[at:]
