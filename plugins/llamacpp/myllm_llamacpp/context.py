"""A llama.cpp context: the KV cache, the batch that goes through the model, and the logits that come out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from myllm_core.errors import EngineError
from myllm_core.machine import free_cores
from myllm_llamacpp.bindings import library, logger
from myllm_llamacpp.model import Model, explain
from myllm_llamacpp.options import LoadSettings
from myllm_llamacpp.threads import Threads

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# ggml_type of ggml.h; llama-cpp-python 0.3.36 doesn't name all of them
_CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


class Batch:
    """The rows of one forward pass, in numpy arrays that llama.cpp reads in place.

    ``seq_id`` holds an address for each row: that of its sequence's cell in ``_cells``. So a whole prompt chunk is
    five slice stores, where setting ctypes fields one by one would take as long as a small model's step.
    """

    def __init__(self, api: Any, rows: int, sequences: int) -> None:
        self.rows = rows
        self._tokens = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._counts = np.ones(rows, np.int32)
        self._outputs = np.zeros(rows, np.int8)
        self._cells = np.arange(sequences, dtype=np.int32)
        self._addresses = [int(self._cells.ctypes.data) + 4 * cell for cell in range(sequences)]
        self._sequences = np.full(rows, self._addresses[0], np.uintp)
        self.native: Any = api.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=_pointer(self._sequences, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Start an empty batch."""
        self.native.n_tokens = 0

    def __len__(self) -> int:
        return int(self.native.n_tokens)

    def add(self, tokens: Ints, position: int, sequence: int, outputs: str) -> int:
        """Add tokens of a sequence from ``position`` on; give the last one's row.

        ``outputs`` says which rows llama.cpp computes results for: ``none``, ``last`` or ``all``.
        """
        start = self.native.n_tokens
        if len(tokens) == 1:
            return self.add_one(tokens[0], position, sequence, outputs != "none")
        end = start + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._sequences[start:end] = self._addresses[sequence]
        self._outputs[start:end] = outputs == "all"
        if outputs == "last":
            self._outputs[end - 1] = 1
        self.native.n_tokens = end
        return int(end - 1)

    def add_one(self, token: Any, position: int, sequence: int, output: bool) -> int:
        """Add one token of a sequence, as every writing one does in every step; give its row."""
        row = int(self.native.n_tokens)
        self._tokens[row] = token
        self._positions[row] = position
        self._sequences[row] = self._addresses[sequence]
        self._outputs[row] = output
        self.native.n_tokens = row + 1
        return row


class RowBatch:
    """One forward pass over embeddings: rows of an image, of shape (rows, width), at places of shape (rows,).

    Where positions have four parts, places are of shape (4, rows). A batch holds tokens or embeddings, never both.
    """

    def __init__(self, api: Any, rows: Floats, places: Ints, sequence: int, output: bool) -> None:
        count = len(rows)
        outputs = np.zeros(count, np.int8)
        outputs[-1] = output
        cell = np.array([sequence], np.int32)
        self._alive = rows, places, outputs, cell, np.ones(count, np.int32), np.full(count, cell.ctypes.data, np.uintp)
        self.native: Any = api.llama_batch(
            n_tokens=count,
            token=None,
            embd=_pointer(rows, ctypes.c_float),
            pos=_pointer(places, ctypes.c_int32),
            n_seq_id=_pointer(self._alive[4], ctypes.c_int32),
            seq_id=_pointer(self._alive[5], ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(outputs, ctypes.c_int8),
        )


@dataclass(frozen=True, slots=True)
class ContextSize:
    """What a context is made for: tokens of cache, rows in a batch, sequences; ``embeddings`` instead of logits."""

    tokens: int
    batch: int
    sequences: int
    embeddings: bool = False
    pooling: int = -1


class Context:
    """A context of a model. One thread uses it; llama.cpp ends the process when an id or a size is out of range."""

    def __init__(self, model: Model, size: ContextSize, settings: LoadSettings) -> None:
        """Allocate it. Raises ``EngineError``, ``OutOfMemory``."""
        self._lib = library()
        self._api: Any = self._lib.api
        self.threads = Threads(settings.n_threads or free_cores(), fixed=settings.n_threads > 0)
        params = self._params(size, settings)
        with self._lib.log.capture() as lines:
            handle = self._api.llama_init_from_model(model.handle, params)
        if not handle:
            raise explain(lines, "llama.cpp can't make a context for this model")
        self.handle: int | None = handle
        model.apply_adapters(handle)
        self.vocab_size = model.vocab_size
        self.embedding_width = model.embedding_width
        self.memory: int | None = self._api.llama_get_memory(handle)
        self.tokens = int(self._api.llama_n_ctx(handle))
        self.tokens_per_sequence = int(self._api.llama_n_ctx_seq(handle))
        self.batch = Batch(self._api, int(self._api.llama_n_batch(handle)), size.sequences)
        self.sequences = size.sequences
        self._row_type = ctypes.c_float * self.vocab_size

    def _params(self, size: ContextSize, settings: LoadSettings) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = size.tokens
        params.n_batch = params.n_ubatch = size.batch
        params.n_seq_max = size.sequences
        params.n_threads = params.n_threads_batch = self.threads.crowding.count
        params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attn]
        params.type_k, params.type_v = _CACHE_TYPES[settings.keys], _CACHE_TYPES[settings.type_v]
        params.swa_full = settings.swa_full
        params.no_perf = True
        if size.embeddings:
            params.embeddings, params.pooling_type, params.kv_unified = True, size.pooling, True
        else:
            params.kv_unified = settings.kv_unified
            # without it llama.cpp keeps logits for a whole batch
            params.n_outputs_max = min(size.sequences + settings.guesses, size.batch)
        return params

    def decode_rows(self, rows: Floats, places: Ints, sequence: int, causal: bool, output: bool) -> int:
        """Run rows of an image in place of tokens, at ``places`` (see ``vision.Span``); as ``decode``.

        Unless ``causal`` each sees all of them. With ``output`` there are logits for the last one.
        """
        batch = RowBatch(self._api, np.ascontiguousarray(rows), np.ascontiguousarray(places), sequence, output)
        if not causal:
            self._api.llama_set_causal_attn(self.handle, False)
        try:
            return self.decode(batch.native)
        finally:
            if not causal:
                self._api.llama_set_causal_attn(self.handle, True)

    def decode(self, batch: Any = None) -> int:
        """Run the batch. 0: done; 1: no room in the cache, nothing changed; else the batch failed (see llama.h).

        Gives the GIL away meanwhile.
        """
        self.threads.begin()
        code = int(self._api.llama_decode(self.handle, batch or self.batch.native))
        if code == 0:
            self._api.llama_synchronize(self.handle)
        count = self.threads.end()
        if count is not None:
            logger.debug("other programs use the cores: computing with %d threads now", count)
            self._api.llama_set_n_threads(self.handle, count, count)
        return code

    def logits(self, row: int) -> Floats:
        """The logits of a batch row that had an output: a view, valid until the next decode.

        Raises ``EngineError`` when there are none.
        """
        address = self._lib.short.llama_get_logits_ith(self.handle, row)
        if not address:
            raise EngineError("llama.cpp made no logits for this token; try again")
        memory: Any = self._row_type.from_address(address)
        return np.frombuffer(memory, np.float32)

    def embeddings(self) -> Floats:
        """The embeddings of all rows of the batch, shape (rows, width): a view, valid until the next decode."""
        pointer = self._api.llama_get_embeddings(self.handle)
        return np.ctypeslib.as_array(pointer, (len(self.batch), self.embedding_width))

    def pooled_embedding(self, sequence: int) -> Floats:
        """A copy of the embedding of a whole sequence, in a context that pools."""
        pointer = self._api.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, (self.embedding_width,)).copy()

    def score(self, sequence: int) -> float:
        """What a reranker's head says of a whole sequence, in a context that pools by it."""
        return float(self._api.llama_get_embeddings_seq(self.handle, sequence)[0])

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        return bool(self._api.llama_get_causal_attn(self.handle))

    def remove(self, sequence: int, start: int = -1) -> bool:
        """Take a sequence's tokens from ``start`` on (all of them by default) out of the cache. False: it can't."""
        return bool(self._lib.short.llama_memory_seq_rm(self.memory, sequence, start, -1))

    @property
    def can_shift(self) -> bool:
        """Whether the tokens of a sequence can be moved to other positions."""
        return bool(self._api.llama_memory_can_shift(self.memory))

    def shift(self, sequence: int, start: int, end: int) -> None:
        """Take the tokens from ``start`` to before ``end`` out, and move those after them up.

        The cells of those must be this sequence's alone, since cells have one position for all.
        """
        self._lib.short.llama_memory_seq_rm(self.memory, sequence, start, end)
        self._api.llama_memory_seq_add(self.memory, sequence, end, -1, start - end)

    def copy(self, source: int, target: int, end: int) -> None:
        """Let an empty sequence share the first ``end`` tokens of another. Only in a unified cache."""
        self._lib.short.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def first(self, sequence: int) -> int:
        """The first position of a sequence that is in the cache; -1 when there is none."""
        return int(self._lib.short.llama_memory_seq_pos_min(self.memory, sequence))

    def last(self, sequence: int) -> int:
        """The last position of a sequence that is in the cache; -1 when there is none."""
        return int(self._lib.short.llama_memory_seq_pos_max(self.memory, sequence))

    def state_size(self, sequence: int) -> int:
        """Bytes that ``state`` would take."""
        return int(self._api.llama_state_seq_get_size_ext(self.handle, sequence, 0))

    def state(self, sequence: int) -> npt.NDArray[np.uint8] | None:
        """A copy of all that the cache holds of a sequence; None when llama.cpp can't make one."""
        data = np.empty(self.state_size(sequence), np.uint8)
        pointer = _pointer(data, ctypes.c_uint8)
        written = self._api.llama_state_seq_get_data_ext(self.handle, pointer, data.nbytes, sequence, 0)
        return data if written == data.nbytes else None

    def restore(self, sequence: int, state: npt.NDArray[np.uint8]) -> bool:
        """Fill an empty sequence with what ``state`` copied. False: there is no room, and it is still empty."""
        pointer = _pointer(state, ctypes.c_uint8)
        with self._lib.log.capture():
            read = self._api.llama_state_seq_set_data_ext(self.handle, pointer, state.nbytes, sequence, 0)
        if read != state.nbytes:
            self.remove(sequence)
        return bool(read == state.nbytes)

    def clear(self) -> None:
        """Forget all sequences."""
        if self.memory is not None:
            self._api.llama_memory_clear(self.memory, False)

    def warm_up(self) -> bool:
        """Run two tokens, so that the first request doesn't pay for it; say whether a sequence can be cut short.

        Recurrent and hybrid models can't: their state holds the whole past. Raises ``EngineError``.
        """
        self.batch.clear()
        self.batch.add(np.zeros(2, np.int32), 0, 0, "last")
        with self._lib.log.capture() as lines:
            if self.decode() != 0:
                raise explain(lines, "llama.cpp can't run this model")
        can_cut = self.remove(0, 1)
        self._api.llama_memory_clear(self.memory, True)
        return can_cut

    def close(self) -> None:
        """Free the context and its cache."""
        if self.handle is not None:
            self._api.llama_free(self.handle)
            self.handle = self.memory = None


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def as_tokens(tokens: Sequence[int]) -> Ints:
    """Token ids as an array. The core gives them as a list."""
    return np.asarray(tokens, np.int32)
