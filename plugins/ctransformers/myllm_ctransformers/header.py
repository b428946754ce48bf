"""What a model file is, read and checked here before native code sees it.

Formats: the loaders in ctransformers 0.2.27 (``models/llms/*.cc``, ``models/ggml/llama-ggml.cpp``) and the GGUF
specification. The old loaders trust what they read: counts and lengths are checked here against the file's size,
tensors against their types, and each file must end where its last tensor does.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.ggml_types import TENSOR_TYPES
from myllm_core.models.gguf import MAGIC, read_gguf
from myllm_core.models.gguf_bytes import ByteReader

_GGML, _GGMF, _GGJT = b"lmgg", b"fmgg", b"tjgg"
_OLD_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14})
"""Tensor types that the library of September 2023 knows, by number."""
_FILE_TYPES = frozenset({0, 1, 2, 3, 7, 8, 9, *range(10, 19)})
"""``ftype`` without the version of its quantization."""
_LIMITS = {"n_vocab": 2**20, "n_ctx": 2**20, "n_embd": 2**16, "n_head": 2**12, "n_layer": 2**10}
_MAX_WORD = 4096
_CONTROL = 3
_ARCHITECTURES = frozenset({"llama", "falcon"})


@dataclass(frozen=True, slots=True)
class Header:
    """A checked file. ``kind`` is the library's name for it; ``control`` are texts of control tokens by id."""

    kind: str
    n_vocab: int
    n_ctx: int
    n_embd: int
    n_layer: int
    control: dict[str, int]
    adds_bos: bool = False
    chat_template: str | None = None

    @property
    def is_llama(self) -> bool:
        """Whether it has a SentencePiece vocabulary, with a space before the first word."""
        return self.kind in ("llama", "gguf")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a kind of file begins: numbers by name (those with ``f:`` are floats), whether the vocabulary's size comes
    again and its words have scores, what the tensors are called, and whether their data are aligned."""

    kind: str
    numbers: tuple[str, ...]
    counted: bool
    scored: bool
    tensors: str
    aligned: bool = False


_GPT = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
_LLAMA = ("n_vocab", "n_embd", "n_mult", "n_head", "n_layer", "n_rot", "ftype")
_LLAMA_NAMES = r"(tok_embeddings|norm|output|layers\.\d+\.[\w.]+)\.weight"
_NEOX_NAMES = r"(gpt_neox\.[\w.]+|embed_out\.weight)"
_LAYOUTS: dict[bytes, tuple[_Layout, ...]] = {
    _GGML: (
        _Layout("gpt2", (*_GPT, "ftype"), True, False, r"model/[\w/]+"),
        _Layout("gptj", (*_GPT, "n_rot", "ftype"), True, False, r"(transformer\.(wte|ln_f|h\.\d)[\w.]*|lm_head\.\w+)"),
        _Layout("gptneox", (*_GPT, "n_rot", "par_res", "ftype"), False, False, _NEOX_NAMES),
        _Layout(
            "mpt",
            ("n_embd", "n_ctx", "n_head", "n_layer", "n_vocab", "f:alibi", "f:clip", "ftype"),
            False,
            False,
            r"transformer\.(wte|norm_f|blocks\.\d)[\w.]*",
        ),
        _Layout("llama", _LLAMA, False, False, _LLAMA_NAMES),
    ),
    _GGMF: (_Layout("llama", ("version", *_LLAMA), False, True, _LLAMA_NAMES),),
    _GGJT: (_Layout("llama", ("version", *_LLAMA), False, True, _LLAMA_NAMES, aligned=True),),
}
_RELATIVES = {"gpt2": (("star", "starcoder"), ("santa", "starcoder")), "gptneox": (("dolly", "dolly-v2"),)}
"""Kinds with the same files as another one, by a part of the model's name."""


def read_header(path: Path, name: str = "", kind: str = "") -> Header:
    """Check a file. ``name`` tells kinds apart whose files are alike, unless ``kind`` says which it is.

    Raises ``IntegrityError`` for what isn't whole or isn't for this library, ``StorageError`` when it can't be read.
    """
    with storage_errors(f"read {path}"), open_regular(path) as file:
        magic = file.read(4)
        if magic == MAGIC:
            return _read_early_gguf(path)
        problems = []
        for layout in _LAYOUTS.get(magic, ()):
            file.seek(4)
            try:
                return _read_ggml(_Reader(file, path.name), layout, f"{name} {path.name}".lower(), kind)
            except _Unfit as problem:
                problems.append(f"as {layout.kind}: {problem}")
    why = "; ".join(problems) or "it doesn't begin as one"
    raise IntegrityError(f"{path.name} is no whole GGML file of a kind that is known here: {why}; pull it again")


class _Unfit(Exception):
    """The file isn't of this layout."""


class _Reader:
    """Takes little-endian values, never beyond the file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        at = file.tell()
        self.size = file.seek(0, 2)
        self.at = file.seek(at)
        self.name = name
        self._file = file

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            self.fail("it ends too early")
        self.at += count
        return self._file.read(count)

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            self.fail("it ends too early")
        self.at = self._file.seek(self.at + count)

    def number(self, kind: str = "i") -> Any:
        return struct.unpack(f"<{kind}", self.take(4))[0]

    def fail(self, reason: str) -> NoReturn:
        raise _Unfit(reason)


def _read_ggml(reader: _Reader, layout: _Layout, name: str, kind: str) -> Header:
    numbers = {key.removeprefix("f:"): reader.number("f" if key.startswith("f:") else "i") for key in layout.numbers}
    _check_numbers(reader, numbers)
    if layout.counted and reader.number() != numbers["n_vocab"]:
        reader.fail("its vocabulary has another size than it says")
    words = _read_words(reader, numbers["n_vocab"], layout.scored)
    _check_tensors(reader, _read_tensors(reader, layout), numbers)
    if layout.kind == "llama":
        control = {"<s>": 1, "</s>": 2}
    else:
        control = {word.decode(): at for at, word in enumerate(words) if re.fullmatch(rb"<\|[\w ]{2,30}\|>", word)}
    relatives = dict(_RELATIVES.get(layout.kind, ()))
    found = kind or next((relative for part, relative in relatives.items() if part in name), layout.kind)
    if found not in (layout.kind, *relatives.values()):
        raise IntegrityError(f"{reader.name} is a file of {layout.kind}, not of {kind}; leave out model_type")
    sizes = numbers["n_vocab"], numbers.get("n_ctx", 2048), numbers["n_embd"], numbers["n_layer"]
    return Header(found, *sizes, control, adds_bos=layout.kind == "llama")


def _check_numbers(reader: _Reader, numbers: dict[str, Any]) -> None:
    for name, limit in _LIMITS.items():
        if not 0 < numbers.get(name, 1) <= limit:
            reader.fail(f"{name} is {numbers[name]}")
    if numbers["n_embd"] % numbers["n_head"] or numbers["ftype"] % 1000 not in _FILE_TYPES:
        reader.fail("its sizes don't fit together")
    if numbers.get("version", 1) not in (1, 2, 3):
        reader.fail(f"its version {numbers['version']} isn't known")


def _read_words(reader: _Reader, count: int, scored: bool) -> list[bytes]:
    words = []
    for _ in range(count):
        length = reader.number("I")
        if length > _MAX_WORD:
            reader.fail(f"a word of its vocabulary has {length} bytes")
        words.append(reader.take(length))
        if scored:
            reader.skip(4)
    return words


def _check_tensors(reader: _Reader, shapes: dict[str, tuple[int, ...]], numbers: dict[str, Any]) -> None:
    """Whether the tensors are those that the numbers speak of: the library uses what it finds, and what it doesn't."""
    width = numbers["n_embd"]
    if (width, numbers["n_vocab"]) not in shapes.values():
        reader.fail("it has no embeddings of its vocabulary")
    of_layer: dict[int, set[str]] = {}
    for name in shapes:
        if found := re.search(r"(?:/h|\.h\.|layers\.|blocks\.)(\d+)[./]", name):
            of_layer.setdefault(int(found[1]), set()).add(name[found.end() :])
    if sorted(of_layer) != list(range(numbers["n_layer"])) or len(set(map(frozenset, of_layer.values()))) != 1:
        reader.fail("its layers aren't all there")
    if shapes.get("model/wpe", (width, numbers.get("n_ctx"))) != (width, numbers.get("n_ctx")):
        reader.fail("its positions aren't as many as its context")


def _read_tensors(reader: _Reader, layout: _Layout) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    while reader.at < reader.size:
        dimensions, length, number = reader.number(), reader.number(), reader.number()
        if dimensions not in (1, 2) or not 0 < length < 256 or number not in _OLD_TYPES:
            reader.fail("a tensor is of a kind that isn't known")
        shape = tuple(reader.number() for _ in range(dimensions))
        name = reader.take(length).decode("latin-1")
        kind = TENSOR_TYPES[number]
        if not re.fullmatch(layout.tensors, name):
            reader.fail(f"a tensor is called {name[:60]!a}")
        if min(shape) < 1 or max(shape) > 2**24 or shape[0] % kind.block:
            reader.fail(f"tensor {name} has the shape {shape}")
        if layout.aligned:
            reader.skip(-reader.at % 32)
        reader.skip(prod(shape) // kind.block * kind.size)
        if name in shapes:
            reader.fail(f"tensor {name} is there twice")
        shapes[name] = shape
    return shapes


def _read_early_gguf(path: Path) -> Header:
    checked = read_gguf(path)
    unknown = {tensor.type for tensor in checked.tensors} - {TENSOR_TYPES[number].name for number in _OLD_TYPES}
    kind = checked.architecture
    if checked.version > 2 or unknown or kind not in _ARCHITECTURES:
        raise IntegrityError(
            f"{path.name} is a GGUF file that this library of 2023 doesn't know (version {checked.version}, "
            f"{kind}, {', '.join(sorted(unknown)) or 'types it has'}); use the engine llamacpp"
        )
    data = checked.metadata
    vocabulary = _read_vocabulary(path)
    sizes = (
        len(vocabulary),
        checked.context_length,
        _size(data, f"{kind}.embedding_length"),
        _size(data, f"{kind}.block_count"),
    )
    heads = _size(data, f"{kind}.attention.head_count")
    if not all(sizes) or not heads or sizes[2] % heads:
        raise IntegrityError(f"{path.name} doesn't say its sizes (context, embedding, blocks, heads); pull it again")
    control = {text: at for at, (text, type) in enumerate(vocabulary) if type == _CONTROL and text}
    adds_bos = bool(data.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    return Header("gguf", *sizes, control, adds_bos, checked.chat_template)


def _size(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    return value if type(value) is int and value > 0 else 0


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9


def _read_vocabulary(path: Path) -> list[tuple[str, int]]:
    """Text and type of each token of a GGUF file that ``read_gguf`` has checked."""
    texts: list[str] = []
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
                texts = [reader.text() for _ in range(count)]
            elif kind == _ARRAY and key == "tokenizer.ggml.token_type":
                item, count = reader.number(_U32), reader.number(_U64)
                if item not in (4, 5):
                    reader.fail("its vocabulary has no types")
                types = list(struct.unpack(f"<{count}i", reader.take(4 * count)))
            else:
                _skip_value(reader, kind)
    if types and len(types) != len(texts):
        raise IntegrityError(f"{path.name} has {len(texts)} tokens and {len(types)} types of them; pull it again")
    return list(zip(texts, types or [1] * len(texts), strict=True))


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
