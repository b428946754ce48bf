"""Looking into an ONNX file without loading it: its inputs, its operators, and the other files that it names.

Format: the protocol buffers ``ModelProto`` and what is in it, of ``onnx.proto`` in the ONNX specification; the numbers
below are its field numbers. Weights are skipped, so that even a file of gigabytes is read in milliseconds.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.manifest import Model

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_NODES = 2_000_000
_DEEPEST = 32

# Where messages lie in messages: kind -> field number -> kind.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
_NODE_OP, _NODE_DOMAIN = 4, 7
_GRAPH_INPUT, _GRAPH_OUTPUT, _NAME = 11, 12, 1
_MODEL_GRAPH = 7

Span = tuple[int, int]
Field = tuple[int, int | Span]
"""A field's number, and its value: a number, or where its bytes begin and end."""


@dataclass
class Graph:
    """What an ONNX file says: names of inputs and outputs, operators as ``domain.name``, and external data's paths."""

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operators: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)

    @property
    def fused_attention(self) -> bool:
        """Whether attention is one operator, which wants its cache in a layout of its own."""
        return any("Attention" in operator.rpartition(".")[2] for operator in self.operators)


def read_interface(path: Path) -> Graph:
    """Only the names of inputs and outputs. Raises ``IntegrityError``, ``StorageError``."""
    return _read(path, whole=False)


def read_graph(path: Path) -> Graph:
    """Everything. Raises ``IntegrityError`` for a file that is damaged or no ONNX model, ``StorageError``."""
    return _read(path, whole=True)


def checked_graph(model: Model, graph: Path) -> tuple[Graph, int]:
    """What the graph says, and the bytes of it and of its external data, which must be files of this model.

    Raises ``IntegrityError`` for a graph that is damaged or that names any other file.
    """
    read = read_graph(graph)
    known = {os.path.abspath(path) for path in model.paths}
    size = graph.stat().st_size
    for location in sorted(read.external):
        path = graph.parent / location
        plain = location and "\\" not in location and ":" not in location and ".." not in location.split("/")
        if not plain or os.path.isabs(location) or os.path.abspath(path) not in known or path.is_symlink():
            raise IntegrityError(
                f"{graph.name} wants to read {location[:80]!r}, which isn't a file of the model; pull another one"
            )
        size += path.stat().st_size
    return read, size


def _read(path: Path, whole: bool) -> Graph:
    with storage_errors(f"read {path}"), open_regular(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise IntegrityError(f"{path.name} is empty, not a model") from None
        with data:
            try:
                graph = _Reader(data).graph(whole)
            except (IndexError, ValueError, UnicodeDecodeError):
                raise IntegrityError(f"{path.name} is no usable ONNX file; pull the model again") from None
    if not graph.outputs:
        raise IntegrityError(f"{path.name} holds no ONNX graph; pull the model again")
    return graph


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._nodes = 0

    def graph(self, whole: bool) -> Graph:
        found = Graph()
        for number, value in self._fields((0, len(self._data))):
            if number == _MODEL_GRAPH and isinstance(value, tuple):
                for inner, span in self._fields(value):
                    if inner in (_GRAPH_INPUT, _GRAPH_OUTPUT) and isinstance(span, tuple):
                        (found.inputs if inner == _GRAPH_INPUT else found.outputs).append(self._text(span, _NAME))
        if whole:
            self._walk(found)
        return found

    def _walk(self, found: Graph) -> None:
        waiting: list[tuple[str, Span, int]] = [("model", (0, len(self._data)), 0)]
        while waiting:
            kind, span, depth = waiting.pop()
            if depth > _DEEPEST:
                raise ValueError("nested too deeply")
            if kind == "node":
                self._nodes += 1
                if self._nodes > _MOST_NODES:
                    raise ValueError("too many nodes")
                found.operators.add(f"{self._text(span, _NODE_DOMAIN)}.{self._text(span, _NODE_OP)}")
            if kind == "external":
                if self._text(span, 1) == "location":
                    found.external.add(self._text(span, 2))
                continue
            for number, value in self._fields(span):
                inner = _INSIDE[kind].get(number)
                if inner and isinstance(value, tuple):
                    waiting.append((inner, value, depth + 1))

    def _text(self, span: Span, wanted: int) -> str:
        """The text in a field of a message; the last one counts, as everywhere in this format."""
        text = b""
        for number, value in self._fields(span):
            if number == wanted and isinstance(value, tuple):
                text = self._data[value[0] : value[1]]
        return text.decode()

    def _fields(self, span: Span) -> Iterator[Field]:
        place, end = span
        while place < end:
            key, place = self._varint(place, end)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, place = self._varint(place, end)
                yield number, value
                continue
            if wire == _BYTES:
                length, place = self._varint(place, end)
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise ValueError("groups aren't used")
            if not number or length > end - place:
                raise ValueError("a field is longer than what it is in")
            yield number, (place, place + length)
            place += length

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                raise ValueError("a number is cut off")
            byte = self._data[place]
            value |= (byte & 0x7F) << shift
            place += 1
            if byte < 0x80:
                return value, place
        raise ValueError("a number is too long")
