"""Texts to embed, a piece at a time, so that whoever else uses the engine gets their turn in between."""

from __future__ import annotations

from collections.abc import Generator
from itertools import accumulate
from typing import Any

from myllm_core.engine import Engine, TokenEngine
from myllm_core.errors import EngineError
from myllm_core.runtime.failures import as_error
from myllm_core.runtime.wire import pack_embeddings
from myllm_core.types import Embeddings

_CHARACTERS, _TEXTS = 2000, 32


class EmbedJob:
    """A request for embeddings. The engine is given a few texts, and makes them in steps where it can.

    With a ``query`` the texts are documents to score: a score is a vector of one number here.
    """

    def __init__(self, rid: int, inputs: list[str], query: str | None = None) -> None:
        self.rid = rid
        self._inputs = inputs
        self._query = query
        self._vectors: list[list[float]] = []
        self._tokens = 0
        self._steps: Generator[None, None, Embeddings] | None = None

    @property
    def amid(self) -> bool:
        """Whether the engine is in the middle of some texts: nobody else's may come in between."""
        return self._steps is not None

    def advance(self, engine: Engine) -> list[Any] | None:
        """Do a step; the answer when that was the last, or when it failed."""
        first = len(self._vectors)
        try:
            texts = self._next(first)
            if self._steps is None:
                self._steps = _steps(engine, texts) if self._query is None else _scored(engine, self._query, texts)
            try:
                next(self._steps)
                return None
            except StopIteration as end:
                self._steps = None
                return self._take(engine, texts, end.value)
        except Exception as error:  # noqa: BLE001 - a stranger's engine may raise anything
            failure = as_error(error, "embedding" if self._query is None else "scoring documents")
            if isinstance(failure.data.get("input"), int):
                failure.data["input"] += first
            return ["x", failure.to_dict()]

    def _take(self, engine: Engine, texts: list[str], made: Embeddings) -> list[Any] | None:
        if len(made.vectors) != len(texts):
            what = "vectors" if self._query is None else "scores"
            raise EngineError(f"the {engine.name} engine made {len(made.vectors)} {what} of {len(texts)} texts")
        self._vectors += made.vectors
        self._tokens += made.prompt_tokens
        done = len(self._vectors) == len(self._inputs)
        return ["e", pack_embeddings(Embeddings(self._vectors, self._tokens))] if done else None

    def _next(self, first: int) -> list[str]:
        sizes = accumulate(map(len, self._inputs[first : first + _TEXTS]))
        fitting = sum(1 for size in sizes if size <= _CHARACTERS)
        return self._inputs[first : first + max(1, fitting)]

    def close(self) -> None:
        """Give it up."""
        if self._steps is not None:
            self._steps.close()


def _steps(engine: Engine, texts: list[str]) -> Generator[None, None, Embeddings]:
    return engine.embed_steps(texts) if isinstance(engine, TokenEngine) else _at_once(engine, texts)


def _at_once(engine: Engine, texts: list[str]) -> Generator[None, None, Embeddings]:
    return engine.embed(texts)
    yield


def _scored(engine: Engine, query: str, documents: list[str]) -> Generator[None, None, Embeddings]:
    made = engine.rerank(query, documents)
    return Embeddings([[float(score)] for score in made.scores], made.prompt_tokens)
    yield
