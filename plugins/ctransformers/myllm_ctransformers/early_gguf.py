"""Early GGUF files, and what of them the library of 2023 can run.

Its vocabularies of bytes (Falcon) have the bytes themselves. Later files have a character for each, which end its
process at the first space.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.ggml_types import TENSOR_TYPES
from myllm_core.models.gguf import read_gguf
from myllm_core.models.gguf_bytes import ByteReader
from myllm_ctransformers.kinds import MAX_WORD, OLD_TYPES, Header

_CONTROL = 3
_ARCHITECTURES = frozenset({"llama", "falcon"})


def read_early_gguf(path: Path) -> Header:
    """Check a GGUF file. Raises ``IntegrityError`` for what isn't whole or of this library's time, ``StorageError``."""
    checked = read_gguf(path)
    unknown = {tensor.type for tensor in checked.tensors} - {TENSOR_TYPES[number].name for number in OLD_TYPES}
    kind = checked.architecture
    if checked.version > 2 or unknown or kind not in _ARCHITECTURES:
        raise IntegrityError(
            f"{path.name} is a GGUF file that this library of 2023 doesn't know (version {checked.version}, "
            f"{kind}, {', '.join(sorted(unknown)) or 'types it has'}); use the engine llamacpp"
        )
    data = checked.metadata
    vocabulary = _read_vocabulary(path)
    if data.get("tokenizer.ggml.model") == "gpt2" and not {bytes([at]) for at in range(256)} <= {
        w for w, _ in vocabulary
    }:
        raise IntegrityError(
            f"{path.name} has its vocabulary in characters for bytes, as later files do, which this library doesn't "
            "know; use the engine llamacpp"
        )
    sizes = (
        len(vocabulary),
        checked.context_length,
        _size(data, f"{kind}.embedding_length"),
        _size(data, f"{kind}.block_count"),
    )
    heads = _size(data, f"{kind}.attention.head_count")
    if not all(sizes) or not heads or sizes[2] % heads:
        raise IntegrityError(f"{path.name} doesn't say its sizes (context, embedding, blocks, heads); pull it again")
    control = {
        word.decode(errors="replace"): at for at, (word, type_) in enumerate(vocabulary) if type_ == _CONTROL and word
    }
    adds_bos = bool(data.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    return Header("gguf", *sizes, control, adds_bos, checked.chat_template)


def _size(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    return value if type(value) is int and value > 0 else 0


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9


def _read_vocabulary(path: Path) -> list[tuple[bytes, int]]:
    """Word (of bytes that may be no UTF-8) and type of each token of a file that ``read_gguf`` has checked."""
    words: list[bytes] = []
    types: list[int] = []
    with storage_errors(f"read {path}"), open_regular(path) as file:
        reader = ByteReader(file, path.name)
        reader.skip(16)
        for _ in range(reader.number(_U64)):
            key, kind = reader.text(), reader.number(_U32)
            if kind == _ARRAY and key == "tokenizer.ggml.tokens":
                item, count = reader.number(_U32), reader.number(_U64)
                if item != _STRING:
                    reader.fail("its vocabulary has no texts")
                words = [_read_word(reader) for _ in range(count)]
            elif kind == _ARRAY and key == "tokenizer.ggml.token_type":
                item, count = reader.number(_U32), reader.number(_U64)
                if item not in (4, 5):
                    reader.fail("its vocabulary has no types")
                types = list(struct.unpack(f"<{count}i", reader.take(4 * count)))
            else:
                _skip_value(reader, kind)
    if types and len(types) != len(words):
        raise IntegrityError(f"{path.name} has {len(words)} tokens and {len(types)} types of them; pull it again")
    return list(zip(words, types or [1] * len(words), strict=True))


def _read_word(reader: ByteReader) -> bytes:
    length = reader.number(_U64)
    if length > MAX_WORD:
        reader.fail(f"a word of its vocabulary has {length} bytes")
    return reader.take(length)


def _skip_value(reader: ByteReader, kind: int) -> None:
    if kind == _STRING:
        reader.skip_texts(1)
    elif kind == _ARRAY:
        item, count = reader.number(_U32), reader.number(_U64)
        if item in _SIZES:
            reader.skip(count * _SIZES[item])
            return
        for _ in range(count):
            _skip_value(reader, item)
    else:
        reader.skip(_SIZES[kind])
