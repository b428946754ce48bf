"""What a model file is, read and checked here before native code sees it.

Formats: the loaders in ctransformers 0.2.27 (``models/llms/*.cc``, ``models/ggml/llama-ggml.cpp``). They trust what
they read: counts and lengths are checked here against the file's size, tensors against their types, and each file must
end where its last tensor does. What the library is known to fail or to end the process at is refused.
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
from myllm_core.models.gguf import MAGIC
from myllm_ctransformers.early_gguf import read_early_gguf
from myllm_ctransformers.kinds import MAX_WORD, OLD_TYPES, Header

_GGML, _GGMF, _GGJT = b"lmgg", b"fmgg", b"tjgg"
_FILE_TYPES = frozenset({0, 1, 2, 3, 7, 8, 9, *range(10, 19)})
"""``ftype`` without the version of its quantization."""
_LIMITS = {"n_vocab": 2**20, "n_ctx": 2**20, "n_embd": 2**16, "n_head": 2**12, "n_layer": 2**10}


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
_UNVERSIONED = "the first LLaMA"
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
        _Layout(_UNVERSIONED, _LLAMA, False, False, _LLAMA_NAMES),
    ),
    _GGMF: (_Layout("llama", ("version", *_LLAMA), False, True, _LLAMA_NAMES),),
    _GGJT: (_Layout("llama", ("version", *_LLAMA), False, True, _LLAMA_NAMES, aligned=True),),
}
_RELATIVES = {"gpt2": (("star", "starcoder"), ("santa", "starcoder")), "gptneox": (("dolly", "dolly-v2"),)}
"""Kinds with the same files and the same sums as another one, by a part of the model's name."""
_WORDS_OF = {
    "starcoder": (
        b"<|system|>", b"<|user|>", b"<|assistant|>", b"<|end|>", b"<fim-prefix>", b"<fim-middle>", b"<fim-suffix>",
        b"<fim-pad>", b"<|end_of_turn|>",
    ),
    "dolly-v2": (b"### End", b"### Instruction:", b"### Response:"),
}  # fmt: skip
"""Words of these kinds that the library makes one token of wherever a text has them."""
_TOLD_BY = {"starcoder": frozenset({b"<fim_prefix>", b"<fim-prefix>"}), "dolly-v2": frozenset({b"### End"})}
"""Words that only these kinds have."""


def read_header(path: Path, name: str = "", kind: str = "") -> Header:
    """Check a file. ``name`` tells kinds apart whose files are alike, unless ``kind`` says which it is.

    Raises ``IntegrityError`` for what isn't whole or isn't for this library, ``StorageError`` when it can't be read.
    """
    with storage_errors(f"read {path}"), open_regular(path) as file:
        magic = file.read(4)
        if magic == MAGIC:
            return read_early_gguf(path)
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
    if layout.kind in ("llama", _UNVERSIONED):
        _check_llama(reader, layout, numbers)
        control, found = {"<s>": 1, "</s>": 2}, "llama"
    else:
        if layout.kind == "mpt":
            _check_mpt(reader, words, numbers)
        found = _relative(layout, frozenset(words), name)
        wanted = _WORDS_OF.get(kind or found, ())
        control = {word.decode(): at for at, word in enumerate(words) if word in wanted or _CONTROL_WORD.match(word)}
    if kind and kind not in (layout.kind, *(relative for _, relative in _RELATIVES.get(layout.kind, ()))):
        raise IntegrityError(f"{reader.name} is a file of {layout.kind}, not of {kind[:60]}; leave out model_type")
    sizes = numbers["n_vocab"], numbers.get("n_ctx", 2048), numbers["n_embd"], numbers["n_layer"]
    return Header(kind or found, *sizes, control, adds_bos=layout.kind == "llama")


_CONTROL_WORD = re.compile(rb"<\|[\w ]{2,30}\|>\Z")


def _relative(layout: _Layout, words: frozenset[bytes], name: str) -> str:
    """The kind, by words that only one has, else by the name, among those whose files are alike."""
    relatives = _RELATIVES.get(layout.kind, ())
    for _, relative in relatives:
        if _TOLD_BY[relative] & words:
            return relative
    return next((relative for part, relative in relatives if part in name), layout.kind)


def _check_llama(reader: _Reader, layout: _Layout, numbers: dict[str, Any]) -> None:
    if layout.kind == _UNVERSIONED:
        raise IntegrityError(
            f"{reader.name} is a LLaMA file without version, of March 2023, whose vocabulary ctransformers can't read; "
            "get the model as a GGUF file"
        )
    version = numbers["version"] if layout.aligned else 1
    type_ = numbers["ftype"] % 1000
    if (version < 2 and type_ not in (0, 1)) or (version < 3 and type_ in (2, 3, 7)):
        raise IntegrityError(
            f"{reader.name} is a LLaMA file of version {version} with weights as they were packed before June 2023, "
            "which ctransformers can't read; get the model as a GGUF file"
        )
    if numbers["n_mult"] < 1 or numbers["n_rot"] != numbers["n_embd"] // numbers["n_head"]:
        reader.fail("its sizes don't fit together")


def _check_mpt(reader: _Reader, words: list[bytes], numbers: dict[str, Any]) -> None:
    if not 0 < numbers["alibi"] < 1000:
        raise IntegrityError(f"{reader.name} is an MPT without ALiBi, which ctransformers computes wrongly")
    try:
        b"\n".join(words).decode()
    except UnicodeDecodeError:
        reader.fail("a word of its vocabulary isn't UTF-8")  # where the library would end the process


def _check_numbers(reader: _Reader, numbers: dict[str, Any]) -> None:
    for name, limit in _LIMITS.items():
        if not 0 < numbers.get(name, 1) <= limit:
            reader.fail(f"{name} is {numbers[name]}")
    if numbers["n_embd"] % numbers["n_head"] or numbers["ftype"] % 1000 not in _FILE_TYPES:
        reader.fail("its sizes don't fit together")
    turned = numbers.get("n_rot", 2)
    if turned % 2 or not 0 < turned <= numbers["n_embd"] // numbers["n_head"]:
        reader.fail(f"n_rot is {turned}")
    if numbers.get("version", 1) not in (1, 2, 3):
        reader.fail(f"its version {numbers['version']} isn't known")


def _read_words(reader: _Reader, count: int, scored: bool) -> list[bytes]:
    words = []
    for _ in range(count):
        length = reader.number("I")
        if length > MAX_WORD:
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
        if dimensions not in (1, 2) or not 0 < length < 256 or number not in OLD_TYPES:
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
