"""Embeddings: texts in, one vector of length 1 each. And the scores of rerankers, which llama.cpp pools likewise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from myllm_core import Embeddings, Scores
from myllm_core.errors import ContextLengthError, EngineError, InvalidRequest, UnsupportedError
from myllm_llamacpp.context import Context, ContextSize, Floats, Ints, as_tokens
from myllm_llamacpp.model import POOLING, Model
from myllm_llamacpp.options import LoadSettings

_SEQUENCES = 32
_LEAST_CONTEXT = 512


class Embedder:
    """Makes embeddings in a context of its own, allocated at the first use and again when an input is longer.

    Causal models (Qwen3-Embedding, or any chat model) read long inputs in chunks and are pooled here, so that memory
    doesn't grow with the input; the others (BERT) must see an input at once and are pooled by llama.cpp. Pooling is
    what the model's file says, the mean when it says nothing.
    """

    def __init__(self, model: Model, settings: LoadSettings, limit: int) -> None:
        """Prepare for inputs of up to ``limit`` tokens."""
        self._model = model
        self._settings = settings
        self._limit = limit
        self._pooling = "mean" if model.pooling == "none" else model.pooling
        self._context: Context | None = None
        self._chunked: bool | None = False if self._pooling == "rank" else None

    def steps(self, inputs: Sequence[str], rows: Callable[[], int]) -> Generator[None, None, Embeddings]:
        """One vector per input, made in steps of as many tokens as ``rows`` says before each.

        Raises ``ContextLengthError``, ``InvalidRequest``, ``UnsupportedError``.
        """
        if self._pooling == "rank":
            raise UnsupportedError("this model scores documents and makes no embeddings; use an embedding model")
        tokens = [self._tokens(number, text) for number, text in enumerate(inputs)]
        if not tokens:
            return Embeddings([])
        context = self._context_for(max(map(len, tokens)))
        vectors: list[list[float]] = []
        for group in _groups(tokens, context.batch.rows):
            try:
                if self._chunked:
                    found = yield from self._read_chunks(context, group, rows)
                else:
                    found = self._read_whole(context, group)
                    yield
            finally:
                context.clear()
            vectors += map(_normalised, found)
        return Embeddings(vectors, sum(map(len, tokens)))

    def scores(self, query: str, documents: Sequence[str]) -> Scores:
        """A score per document, by the head that a reranker has. Raises as ``steps``."""
        if self._pooling != "rank":
            raise UnsupportedError("this model doesn't score documents; use a reranker, or its embeddings")
        pairs = [self._fitting(number, self._model.tokenize_pair(query, text)) for number, text in enumerate(documents)]
        if not pairs:
            return Scores([])
        context = self._context_for(max(map(len, pairs)))
        scores: list[float] = []
        for group in _groups(pairs, context.batch.rows):
            try:
                self._run_whole(context, group)
                scores += [context.score(sequence) for sequence in range(len(group))]
            finally:
                context.clear()
        if not np.isfinite(scores).all():
            raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
        return Scores(scores, sum(map(len, pairs)))

    def _tokens(self, number: int, text: str) -> Ints:
        return self._fitting(number, self._model.tokenize_whole(text))

    def _fitting(self, number: int, tokens: list[int]) -> Ints:
        if not tokens:
            raise InvalidRequest("an input is empty; send some text", input=number)
        if len(tokens) > self._limit:
            raise ContextLengthError(
                f"an input has {len(tokens)} tokens, the model takes {self._limit}; send it in parts",
                input=number,
                prompt_tokens=len(tokens),
                context_size=self._limit,
            )
        return as_tokens(tokens)

    def _context_for(self, longest: int) -> Context:
        if self._context is not None and longest <= self._context.tokens:
            return self._context
        self.close()
        tokens = max(_LEAST_CONTEXT, 1 << (longest - 1).bit_length())
        if self._chunked is not False:
            self._context = self._make(tokens, min(tokens, max(self._settings.n_batch, _SEQUENCES)), "none")
            self._chunked = self._context.memory is not None and self._context.is_causal
        if not self._chunked:
            self.close()
            self._context = self._make(tokens, tokens, self._pooling)
        assert self._context is not None
        return self._context

    def _make(self, tokens: int, batch: int, pooling: str) -> Context:
        number = next(number for number, name in POOLING.items() if name == pooling)
        return Context(self._model, ContextSize(tokens, batch, _SEQUENCES, True, number), self._settings)

    def _run_whole(self, context: Context, group: list[Ints]) -> None:
        context.batch.clear()
        for sequence, tokens in enumerate(group):
            context.batch.add(tokens, 0, sequence, "all")
        _decode(context)

    def _read_whole(self, context: Context, group: list[Ints]) -> list[Floats]:
        self._run_whole(context, group)
        return [context.pooled_embedding(sequence) for sequence in range(len(group))]

    def _read_chunks(
        self, context: Context, group: list[Ints], rows: Callable[[], int]
    ) -> Generator[None, None, list[Floats]]:
        """Inputs one after the other, each step as far as it may go: several short ones, or a part of a long one."""
        found: list[Floats | None] = [None] * len(group)
        parts = deque((sequence, 0) for sequence in range(len(group)))
        while parts:
            room = max(1, min(rows(), context.batch.rows))
            read = self._step(context, group, parts, room)
            _decode(context)
            made = context.embeddings()
            for sequence, begin, end in read:
                found[sequence] = self._pool(found[sequence], made[begin:end])
            yield
        return [vector for vector in found if vector is not None]

    def _step(
        self, context: Context, group: list[Ints], parts: deque[tuple[int, int]], room: int
    ) -> list[tuple[int, int, int]]:
        """Fill the batch with ``room`` of the tokens that are left; which of its rows are whose."""
        context.batch.clear()
        read: list[tuple[int, int, int]] = []
        while parts and room:
            sequence, start = parts.popleft()
            tokens = group[sequence][start : start + room]
            end = 1 + context.batch.add(tokens, start, sequence, "all")
            read.append((sequence, end - len(tokens), end))
            room -= len(tokens)
            if start + len(tokens) < len(group[sequence]):
                parts.appendleft((sequence, start + len(tokens)))
        return read

    def _pool(self, before: Floats | None, rows: Floats) -> Floats:
        """Take further token embeddings of an input in; a mean is kept as a sum, since only its direction counts."""
        if self._pooling == "last":
            return np.array(rows[-1])
        if self._pooling == "cls":
            return np.array(rows[0]) if before is None else before
        total: Floats = rows.sum(axis=0)
        return total if before is None else before + total

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
            self._context = None


def _groups(inputs: list[Ints], rows: int) -> Iterator[list[Ints]]:
    """Neighbours that fit a batch together; a longer input stays alone."""
    group: list[Ints] = []
    for tokens in inputs:
        if group and (len(group) == _SEQUENCES or sum(map(len, group)) + len(tokens) > rows):
            yield group
            group = []
        group.append(tokens)
    yield group


def _decode(context: Context) -> None:
    code = context.decode()
    if code != 0:
        raise EngineError(f"llama.cpp couldn't make the embeddings (code {code}); send fewer or shorter inputs")


def _normalised(vector: Floats) -> list[float]:
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length):
        raise EngineError("the model's output isn't a number; its file may be damaged: pull it again")
    scaled: list[float] = (vector / (length or 1.0)).tolist()
    return scaled
