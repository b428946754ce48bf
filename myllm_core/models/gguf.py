"""Reading the metadata of a GGUF file, with every number checked before it is used.

Native code trusts these files more than a file from outside deserves, so this reader goes first: what it refuses never
reaches an engine. It reads the header only, keeps no long array, and takes well under a second and 200 MB whatever the
file says.

Format: the GGUF specification of ggml (``docs/gguf.md`` in the ggml repository), versions 2 and 3, little endian. The
further rules (names below 64 bytes, no duplicates, tensors one after the other) are those of ggml's own loader.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.ggml_types import FILE_TYPES, GUESSED, TENSOR_TYPES
from myllm_core.models.gguf_bytes import ByteReader

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL, _UINT32, _FLOAT32 = 8, 9, 7, 4, 6
_SCALARS = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
    }.items()
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]

_MAX_KEYS = 65_536
_MAX_TENSORS = 131_072
_MAX_ARRAY = 64 * 2**20
_MAX_WALKED = 4 * 2**20  # texts in all arrays together: they can only be skipped one by one
_NESTED_COST = 16  # how many texts take as long to skip as one nested array
_MAX_KEPT_ARRAY = 1024
_MAX_KEPT_ELEMENTS = 65_536
_MAX_DEPTH = 4
_MAX_DIMENSIONS = 4
_MAX_NAME = 64
_MAX_KEY = 65_535
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8

_TEXT_KEYS = (
    "general.architecture",
    "general.name",
    "general.license",
    "general.type",
    "adapter.type",
    "tokenizer.chat_template",
)
_NUMBER_KEYS = {"general.file_type": 2**31, "split.no": 65_535, "split.count": 65_535}
_MODEL_KEYS = {
    "block_count": 4096,
    "context_length": 2**31,
    "embedding_length": 2**24,
    "vocab_size": 2**31,
    "expert_count": 2**16,
}


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array of the metadata that was checked and skipped, not kept."""

    length: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: ``offset`` in bytes from the file's begin, ``type`` by its ggml name such as ``Q4_1``."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUF:
    """What a GGUF file says of itself. ``metadata`` values are bool, int, float, str, a list of those, or LongArray."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data_offset: int

    @property
    def architecture(self) -> str:
        """The model's architecture, such as ``llama``; empty when the file doesn't say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for; 0 when the file doesn't say."""
        return int(self.metadata.get(f"{self.architecture}.context_length", 0))

    @property
    def quantization(self) -> str:
        """What most weights are stored as, such as ``Q4_K_M``; empty for a file without tensors."""
        named = FILE_TYPES.get(int(self.metadata.get("general.file_type", -1)) & ~GUESSED)
        if named or not self.tensors:
            return named or ""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.type] += prod(tensor.shape)
        return sizes.most_common(1)[0][0]

    @cached_property
    def parameters(self) -> int:
        """How many weights the tensors of this file hold."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt, if there is one."""
        return self.metadata.get("tokenizer.chat_template")

    @property
    def split(self) -> tuple[int, int]:
        """Which of how many files this is, counted from 0: ``(0, 1)`` for a model in one file."""
        return int(self.metadata.get("split.no", 0)), max(1, int(self.metadata.get("split.count", 1)))


def read_gguf(path: Path) -> GGUF:
    """Read and check the header of a GGUF file; the weights aren't read, only that they are all there.

    Raises ``IntegrityError`` for a file that isn't whole or isn't what the specification allows, ``StorageError`` when
    it can't be read.
    """
    with storage_errors(f"read {path}"), open_regular(path) as file:
        reader = ByteReader(file, path.name)
        version, tensor_count, key_count = _read_head(reader)
        metadata = _read_metadata(reader, key_count)
        tensors, data_offset = _read_tensors(reader, tensor_count, metadata.get("general.alignment", 32))
    return GGUF(version, metadata, tensors, data_offset)


def _read_head(reader: ByteReader) -> tuple[int, int, int]:
    if reader.size < 24 or reader.take(4) != MAGIC:
        reader.fail("it doesn't begin with a GGUF header")
    version = reader.number(_U32)
    if version & 0xFFFF == 0 and version:
        reader.fail("it is big endian; use the little endian file of the same model")
    if version not in _VERSIONS:
        advice = "is too old; convert the model again" if version < 2 else "isn't known; update myllm"
        reader.fail(f"its version {version} {advice}")
    tensors, keys = reader.number(_U64), reader.number(_U64)
    if keys > min(_MAX_KEYS, reader.left // _MIN_KEY_BYTES):
        reader.fail(f"it claims {keys} metadata keys")
    if tensors > min(_MAX_TENSORS, reader.left // _MIN_TENSOR_BYTES):
        reader.fail(f"it claims {tensors} tensors")
    return version, tensors, keys


def _read_metadata(reader: ByteReader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text(_MAX_KEY)
        if not re.fullmatch(r"[!-~]+", key):
            reader.fail(f"a metadata key is empty or not plain ASCII: {key[:60]!r}")
        if key in metadata:
            reader.fail(f"the metadata key {key} is there twice")
        kind = reader.number(_U32)
        if key == "general.alignment" and kind != _UINT32:
            reader.fail("general.alignment is no uint32")
        if key == "adapter.lora.alpha" and kind != _FLOAT32:
            reader.fail("adapter.lora.alpha is no float32")
        metadata[key] = _read_value(reader, kind)
    _check_metadata(reader, metadata)
    return metadata


def _read_value(reader: ByteReader, kind: int) -> Any:
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _read_array(reader)
    if kind not in _SCALARS:
        reader.fail(f"metadata type {kind} isn't known")
    value = reader.number(_SCALARS[kind])
    if kind == _BOOL and value > 1:
        reader.fail(f"a truth value is {value}")
    return bool(value) if kind == _BOOL else value


def _read_array(reader: ByteReader) -> list[Any] | LongArray:
    kind, length = reader.number(_U32), reader.number(_U64)
    if length > _MAX_ARRAY:
        reader.fail(f"an array of {length} elements is longer than the {_MAX_ARRAY} that are allowed")
    if kind != _ARRAY and length <= min(_MAX_KEPT_ARRAY, _MAX_KEPT_ELEMENTS - reader.kept_elements):
        reader.kept_elements += length
        return [_read_value(reader, kind) for _ in range(length)]
    _skip_array(reader, kind, length, depth=1)
    return LongArray(length)


def _skip_array(reader: ByteReader, kind: int, length: int, depth: int) -> None:
    if kind in _SCALARS:
        reader.skip(length * _SCALARS[kind].size)
        return
    if kind not in (_STRING, _ARRAY):
        reader.fail(f"metadata type {kind} isn't known")
    reader.walked += length * (1 if kind == _STRING else _NESTED_COST)
    if reader.walked > _MAX_WALKED or depth > _MAX_DEPTH:
        reader.fail("its arrays are too long or too deep")
    if kind == _STRING:
        reader.skip_texts(length)
        return
    for _ in range(length):
        _skip_array(reader, reader.number(_U32), reader.number(_U64), depth + 1)


def _check_metadata(reader: ByteReader, metadata: dict[str, Any]) -> None:
    for key in _TEXT_KEYS:
        if not isinstance(metadata.get(key, ""), str):
            reader.fail(f"{key} is no text")
    architecture = metadata.get("general.architecture", "")
    limits = _NUMBER_KEYS | {f"{architecture}.{key}": limit for key, limit in _MODEL_KEYS.items()}
    for key, limit in limits.items():
        value = metadata.get(key, 0)
        if type(value) is not int or not 0 <= value <= limit:
            reader.fail(f"{key} is {str(value)[:60]}, not a whole number up to {limit}")
    alignment = metadata.get("general.alignment", 32)
    if alignment < 1 or alignment & (alignment - 1):
        reader.fail(f"general.alignment is {alignment}, no power of two")


def _read_tensors(reader: ByteReader, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    described = [_read_tensor(reader) for _ in range(count)]
    if len({tensor.name for tensor in described}) < count:
        reader.fail("two tensors have the same name")
    data_offset = -(-reader.position // alignment) * alignment
    expected = 0
    tensors = []
    for tensor in described:
        if tensor.offset != expected:
            reader.fail(f"tensor {tensor.name} lies at {tensor.offset}, not at {expected} where the one before it ends")
        if data_offset + tensor.offset + tensor.nbytes > reader.size:
            reader.fail(f"tensor {tensor.name} reaches beyond the end of the file; it isn't whole")
        expected += -(-tensor.nbytes // alignment) * alignment
        tensors.append(Tensor(tensor.name, tensor.shape, tensor.type, data_offset + tensor.offset, tensor.nbytes))
    return tuple(tensors), data_offset


def _read_tensor(reader: ByteReader) -> Tensor:
    """One tensor's description; its offset counts from the begin of the data still."""
    name = reader.text(_MAX_NAME - 1)
    if not name.isprintable() or "\ufffd" in name:
        reader.fail(f"a tensor's name isn't printable: {name!r}")
    dimensions = reader.number(_U32)
    if dimensions > _MAX_DIMENSIONS:
        reader.fail(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(reader.number(_U64) for _ in range(dimensions))
    number = reader.number(_U32)
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        reader.fail(f"tensor {name} has type {number}, which isn't known; update myllm if the model is very new")
    elements = prod(shape)
    if elements >= 2**63 or any(size >= 2**63 for size in shape) or (shape[0] if shape else 1) % kind.block:
        reader.fail(f"tensor {name} can't have the shape {shape} in type {kind.name}")
    return Tensor(name, shape, kind.name, reader.number(_U64), elements // kind.block * kind.size)
