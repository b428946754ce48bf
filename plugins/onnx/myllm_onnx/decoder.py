"""A plain decoder's graph on ONNX Runtime alone: past keys and values go in, and come out one token longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from myllm_core.errors import EngineError
from myllm_core.models.onnx_file import Graph
from myllm_core.sampler import Floats
from myllm_onnx.layout import LOGITS, PAST, PRESENT, library_error

Array = npt.NDArray[Any]

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(eq=False)
class _Cache:
    """Keys and values of sequences side by side: ``[rows, heads, tokens, width]``, each row at the right end."""

    numbers: list[int]
    lengths: list[int]
    values: list[Any]

    def row(self, number: int) -> tuple[int, list[Array]]:
        """The length of a sequence, and a view of its own part of every array."""
        place = self.numbers.index(number)
        length = self.lengths[place]
        return length, [_part(value.numpy()[place], length) for value in self.values]


class DecoderBackend:
    """A graph with ``past_key_values``; sequences go through it side by side where its attention bears padding."""

    def __init__(self, session: Any, graph: Graph) -> None:
        """Take an ``InferenceSession``. Raises ``EngineError`` for a graph whose cache has another form."""
        import onnxruntime

        self._ort: Any = onnxruntime
        self._session = session
        inputs = {entry.name: entry for entry in session.get_inputs()}
        outputs = {entry.name: entry for entry in session.get_outputs()}
        self._past = [name for name in inputs if name.startswith(PAST)]
        presents = [PRESENT + name.removeprefix(PAST) for name in self._past]
        self._outputs = [LOGITS, *presents]
        self._extra = set(inputs) - set(self._past)
        if not set(self._outputs) <= set(outputs):
            raise EngineError(
                "the graph doesn't give its keys and values back; export it for text-generation-with-past"
            )
        self._forms = [_form(inputs[name]) for name in self._past]
        width = outputs[LOGITS].shape[-1]
        self.vocab_size: int = width if type(width) is int else len(self._probe())
        # Fused attention counts from the left and takes its own length from the mask; without positions padding shifts.
        self._side_by_side = "position_ids" in self._extra and not graph.fused_attention
        self._caches: dict[int, _Cache] = {}

    def _probe(self) -> Floats:
        logits, _ = self._run(self._empty(0), [[0]])
        return logits[0]

    def _empty(self, number: int) -> _Cache:
        values = [np.zeros((1, heads, 0, width), kind) for heads, width, kind in self._forms]
        return _Cache([number], [0], [self._ort.OrtValue.ortvalue_from_numpy(value) for value in values])

    def open(self, number: int, room: int) -> int:
        """Begin a sequence; memory is taken as it grows."""
        self._caches[number] = self._empty(number)
        return 2**31

    def read(self, number: int, tokens: list[int]) -> Floats:
        """Put tokens behind a sequence; the logits of what comes next."""
        logits, cache = self._run(self._together([number]), [tokens])
        self._caches[number] = cache
        return logits[0]

    def write(self, tokens: Mapping[int, int]) -> list[Floats]:
        """One token more of each sequence."""
        if not self._side_by_side or len(tokens) == 1:
            return [self.read(number, [token]) for number, token in tokens.items()]
        logits, cache = self._run(self._together(list(tokens)), [[token] for token in tokens.values()])
        for number in tokens:
            self._caches[number] = cache
        return logits

    def _run(self, cache: _Cache, tokens: list[list[int]]) -> tuple[list[Floats], _Cache]:
        count, longest = len(tokens[0]), max(cache.lengths)
        lengths = np.array(cache.lengths, np.int64)[:, None]
        mask = np.arange(longest + count)[None, :] >= longest - lengths
        given: dict[str, Array] = {
            "input_ids": np.array(tokens, np.int64),
            "attention_mask": mask.astype(np.int64),
            "position_ids": lengths + np.arange(count, dtype=np.int64)[None, :],
            "num_logits_to_keep": np.array(1, np.int64),
        }
        values = {name: self._ort.OrtValue.ortvalue_from_numpy(given[name]) for name in self._extra}
        values |= dict(zip(self._past, cache.values, strict=True))
        try:
            logits, *presents = self._session.run_with_ort_values(self._outputs, values)
        except Exception as error:  # noqa: BLE001 - the library has a class for each kind of failure, below Exception
            raise library_error("ONNX Runtime failed", error) from None
        last = logits.numpy()[:, -1]
        grown = _Cache(cache.numbers, [length + count for length in cache.lengths], presents)
        return [np.array(row, np.float32) for row in last], grown

    def _together(self, numbers: list[int]) -> _Cache:
        """One cache for these sequences; what else was in theirs stays together, without them: no dead row is kept."""
        caches = {id(self._caches[number]): self._caches[number] for number in numbers}
        if len(caches) == 1 and self._caches[numbers[0]].numbers == numbers:
            return self._caches[numbers[0]]
        joined = self._joined(numbers)
        for cache in caches.values():
            others = [other for other in cache.numbers if other not in numbers and self._caches.get(other) is cache]
            if others:
                self._caches |= dict.fromkeys(others, self._joined(others))
        return joined

    def _joined(self, numbers: list[int]) -> _Cache:
        rows = [self._caches[number].row(number) for number in numbers]
        longest = max(length for length, _ in rows)
        values = []
        for place, (heads, width, kind) in enumerate(self._forms):
            value = np.zeros((len(rows), heads, longest, width), kind)
            for row, (length, parts) in enumerate(rows):
                _part(value[row], length)[...] = parts[place]
            values.append(self._ort.OrtValue.ortvalue_from_numpy(value))
        return _Cache(numbers, [length for length, _ in rows], values)

    def cut(self, number: int, length: int) -> bool:
        """Take a sequence back to its first tokens."""
        before, parts = self._caches[number].row(number)
        kept = [np.ascontiguousarray(part[:, :length])[None] for part in parts]
        values = [self._ort.OrtValue.ortvalue_from_numpy(value) for value in kept]
        self._caches[number] = _Cache([number], [min(length, before)], values)
        return True

    def close(self, number: int) -> None:
        """Forget a sequence."""
        self._caches.pop(number, None)

    def free(self) -> None:
        """Free the session and every sequence."""
        self._caches.clear()
        self._session = None


def _part(values: Array, length: int) -> Array:
    """The last ``length`` tokens of ``[heads, tokens, width]``."""
    return values[:, values.shape[1] - length :]


def _form(entry: Any) -> tuple[int, int, Any]:
    """Heads, width and type of a cache's input. Raises ``EngineError``."""
    shape = entry.shape
    if len(shape) != 4 or entry.type not in _TYPES or type(shape[1]) is not int or type(shape[3]) is not int:
        raise EngineError(f"the graph's cache is of a form that the onnx engine doesn't know: {entry.type} {shape}")
    return shape[1], shape[3], _TYPES[entry.type]
