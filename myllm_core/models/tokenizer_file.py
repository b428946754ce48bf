"""A ``tokenizer.json``: text to token ids, and token ids to bytes.

The format is that of the library ``tokenizers``, which does the work; plugins that open such a file bring it along.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from myllm_core.engine import ModelFacts
from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.hub_files import HubFiles

_MAX_TOKENIZER = 256 * 2**20
_SPACE = "\u2581"  # how SentencePiece writes a space
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_ENDS = frozenset({
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>",
    "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<turn|>", "<EOT>", "</s>",
})  # fmt: skip
"""Control tokens that end a turn in the common families, where a model's files name one of its ends only."""


class TokenizerFile:
    """A model's tokenizer, with control tokens only where they are asked for. May be used from any thread.

    ``special_texts`` are those of control tokens, ``added_texts`` those of other tokens that are matched as a whole.
    ``size`` is one more than the highest id; the model's own vocabulary may be padded beyond it.
    """

    def __init__(self, path: Path, control: Collection[str] = ()) -> None:
        """Read the file; ``control`` are texts of further control tokens, such as ``HubFiles.special_texts`` gives.

        Raises ``IntegrityError`` when it is damaged or the library doesn't know what is in it.
        """
        data = _read(path)
        data["truncation"] = data["padding"] = None
        added = _added(data)
        for token in added:
            token["special"] = bool(token.get("special")) or token["content"] in control
        self._control = {token["id"]: str(token["content"]) for token in added if token["special"]}
        self._added = {token["id"]: str(token["content"]) for token in added if not token["special"]}
        self._special, self._plain = _make(data), _make(data)
        self._plain.encode_special_tokens = True
        self._ids: dict[str, int] = self._plain.get_vocab(True)
        self._texts = {number: text for text, number in self._ids.items()}
        self.special_texts = tuple(filter(None, self._control.values()))
        self.added_texts = tuple(filter(None, self._added.values()))
        self.size = 1 + max(self._texts, default=-1)
        self._bytes = _piece_reader(data)
        lead = self._encode("a", False)
        self._newline = self._encode("\n", False) if lead and self.piece(lead[0]).startswith(b" ") else []

    def token(self, text: str) -> int | None:
        """The id of the token that is written so, if there is one."""
        return self._ids.get(text)

    @property
    def first_token(self) -> int | None:
        """The control token that the tokenizer puts before a text, if it does."""
        first = next(iter(self._special.encode("a").ids), None)
        return first if first in self._control else None

    @property
    def end_tokens(self) -> frozenset[int]:
        """The control tokens that end a turn in the common families of models."""
        return frozenset(number for number, text in self._control.items() if text in _ENDS)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a piece of a prompt, without BOS or EOS; a character that UTF-8 can't hold becomes ``?``.

        Control tokens are recognised only when ``special``. Where the vocabulary wants a space before the first word,
        it is implied only where a prompt may begin: in a ``special`` text that starts with no whitespace. Other pieces
        go on where the last one ended.
        """
        if not text:
            return []
        if not self._newline or (special and not text[0].isspace()):
            return self._encode(text, special)
        tokens, lead = self._encode("\n" + text, special), len(self._newline)
        return tokens[lead:] if tokens[:lead] == self._newline else self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        tokenizer = self._special if special else self._plain
        return list(tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids)

    def tokenize_whole(self, text: str) -> list[int]:
        """Token ids of a text that stands alone, with the BOS, EOS, CLS or SEP that the model wants around it."""
        return list(self._plain.encode(text.encode("utf-8", "replace").decode()).ids)

    def tokenize_pair(self, one: str, other: str) -> tuple[list[int], list[int]]:
        """Token ids of two texts with what the model wants around and between them, and for each the text it is of."""
        pair = [text.encode("utf-8", "replace").decode() for text in (one, other)]
        found = self._plain.encode(*pair)
        return list(found.ids), list(found.type_ids)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens, and for numbers that stand for nothing."""
        if token in self._control:
            return b""
        if token in self._added:
            return self._added[token].encode()
        text = self._texts.get(token)
        return b"" if text is None else self._bytes(text)


def hub_facts(
    files: HubFiles, tokenizer: TokenizerFile, context_size: int, vocab_size: int, capabilities: Iterable[str]
) -> ModelFacts:
    """What an engine says of a model in such files; ``vocab_size`` is the width of its logits."""
    says = files.config("tokenizer_config.json").get("add_bos_token")
    bos = tokenizer.token(files.token_text("bos_token")) if says else None if says is False else tokenizer.first_token
    named = {*files.end_tokens(), tokenizer.token(files.token_text("eos_token"))}
    return ModelFacts(
        context_size=context_size,
        trained_context=files.trained_context,
        vocab_size=vocab_size,
        chat_template=files.chat_template(),
        bos_token=bos,
        bos_text=files.token_text("bos_token"),
        eos_text=files.token_text("eos_token"),
        eos_tokens=frozenset(t for t in named | tokenizer.end_tokens if t is not None and t < vocab_size),
        special_tokens=tokenizer.special_texts,
        added_tokens=tokenizer.added_texts,
        capabilities=frozenset(capabilities),
    )


def _read(path: Path) -> dict[str, Any]:
    with storage_errors(f"read {path}"), open_regular(path) as file:
        text = file.read(_MAX_TOKENIZER + 1)
    if len(text) > _MAX_TOKENIZER:
        raise IntegrityError(f"{path.name} is larger than {_MAX_TOKENIZER // 2**20} MiB")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{path.name} is no valid JSON") from None
    if not isinstance(data, dict):
        raise IntegrityError(f"{path.name} holds no JSON object")
    return data


def _make(data: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise IntegrityError(f"tokenizer.json can't be used: {str(error)[:300]}") from None


def _added(data: dict[str, Any]) -> list[dict[str, Any]]:
    added = data.get("added_tokens") or []
    try:
        if all(type(token["id"]) is int and isinstance(token["content"], str) for token in added):
            return list(added)
    except (TypeError, KeyError):
        pass
    raise IntegrityError("tokenizer.json: its added tokens are described wrongly")


def _piece_reader(data: dict[str, Any]) -> Callable[[str], bytes]:
    """How a vocabulary's texts become bytes: by GPT-2's byte alphabet, with SentencePiece's blanks, or as they are."""
    model = data.get("model")
    fallback = isinstance(model, dict) and model.get("byte_fallback") is True
    kinds = {*_types(data.get("decoder")), *_types(data.get("pre_tokenizer"))}
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
        return lambda text: bytes(alphabet[c] for c in text) if all(c in alphabet for c in text) else text.encode()
    if not (fallback or "Metaspace" in kinds):
        return str.encode

    def read(text: str) -> bytes:
        byte = _BYTE.fullmatch(text) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()

    return read


def _types(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in (*(part.get("decoders") or ()), *(part.get("pretokenizers") or ())):
            yield from _types(inner)


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: printable Latin-1 itself, others from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
