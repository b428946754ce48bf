"""An engine put together from parts of the core: for backends that turn tokens into logits, or into vectors.

Such an engine only says which models it takes and how they are loaded (``probe``, ``estimate``, ``load``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from myllm_core.engine import ModelFacts, Sequence, TokenEngine, TokenOut
from myllm_core.errors import UnsupportedError
from myllm_core.types import Embeddings, Sampling

if TYPE_CHECKING:
    from myllm_core.decoding import Decoding
    from myllm_core.embedding import Embedder

WRITES = frozenset({"chat", "complete", "grammar", "logprobs"})
"""What a model can do that ``Decoding`` runs."""


class Tokenizer(Protocol):
    """Turns a piece of a prompt into tokens, and these into bytes; ``TokenizerFile`` is one."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """As ``TokenEngine.tokenize``."""

    def piece(self, token: int) -> bytes:
        """As ``TokenEngine.piece``."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A model that writes has ``decoding``, one that makes embeddings ``embedder``; ``free`` gives the memory back."""

    tokenizer: Tokenizer
    facts: ModelFacts
    free: Callable[[], None]
    decoding: Decoding | None = None
    embedder: Embedder | None = None
    max_sequences: int = 1


class AssembledEngine(TokenEngine):
    """A loaded model whose parts do the work. Subclasses say which models they take, and load them."""

    sampling: ClassVar[frozenset[str]] = frozenset(field.name for field in fields(Sampling))

    def __init__(self, parts: Parts) -> None:
        """Put the loaded parts together; ``load`` makes them."""
        self._parts = parts
        self.max_sequences = parts.max_sequences

    @property
    def facts(self) -> ModelFacts:
        """What is true of the loaded model."""
        return self._parts.facts

    @property
    def _running(self) -> Decoding:
        if self._parts.decoding is None:
            raise UnsupportedError("this model can't write text; use a chat model")
        return self._parts.decoding

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids of a piece of a prompt; see ``TokenizerFile.tokenize`` for SentencePiece's leading space."""
        return self._parts.tokenizer.tokenize(text, special)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        return self._parts.tokenizer.piece(token)

    def add(self, sequence: Sequence) -> None:
        """Take a sequence on. Raises ``UnsupportedError`` for a model that writes nothing."""
        self._running.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Drop a sequence; what it has read is kept for a prompt that begins the same."""
        if self._parts.decoding is not None:
            self._parts.decoding.cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        """A token of every sequence that writes, and a chunk of a prompt."""
        return self._running.step()

    def embed(self, inputs: Seq[str]) -> Embeddings:
        """One vector per input. Raises ``ContextLengthError``, ``InvalidRequest``, ``UnsupportedError``."""
        steps = self.embed_steps(inputs)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                made: Embeddings = end.value
                return made

    def embed_steps(self, inputs: Seq[str]) -> Generator[None, None, Embeddings]:
        """The same in steps of a forward pass each."""
        if self._parts.embedder is None:
            raise UnsupportedError("this model makes no embeddings; use an embedding model")
        return self._parts.embedder.steps(inputs)

    def close(self) -> None:
        """Free the model."""
        decoding, free = self._parts.decoding, self._parts.free
        self._parts = replace(self._parts, decoding=None, embedder=None, free=lambda: None)
        if decoding is not None:
            decoding.close()
        del decoding  # with the caches that it holds
        free()
