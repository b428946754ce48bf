"""A TokenEngine around another one, to put something between it and the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from myllm_core.engine import LoadProgress, MemoryEstimate, ModelFacts, Sequence, Support, TokenEngine, TokenOut
from myllm_core.models.manifest import Model


class Wrapped(TokenEngine):
    """Hands everything on to the engine inside."""

    name = "wrapped"
    formats = frozenset({"none"})

    def __init__(self, engine: TokenEngine) -> None:
        self._engine = engine
        self.max_sequences = engine.max_sequences

    @classmethod
    def probe(cls, model: Model) -> Support:
        """No model is loaded by it."""
        return Support(0, "it wraps an engine that is loaded")

    @classmethod
    def estimate(cls, model: Model, options: Mapping[str, Any]) -> MemoryEstimate:
        """Nothing."""
        return MemoryEstimate(0)

    @classmethod
    def load(cls, model: Model, options: Mapping[str, Any], progress: LoadProgress) -> Self:
        """Never."""
        raise NotImplementedError

    @property
    def facts(self) -> ModelFacts:
        """The inner engine's."""
        return self._engine.facts

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The inner engine's."""
        return self._engine.tokenize(text, special)

    def piece(self, token: int) -> bytes:
        """The inner engine's."""
        return self._engine.piece(token)

    def add(self, sequence: Sequence) -> None:
        """The inner engine's."""
        self._engine.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """The inner engine's."""
        self._engine.cancel(sequence_id)

    def step(self) -> list[TokenOut]:
        """The inner engine's."""
        return self._engine.step()

    def idle(self) -> bool:
        """The inner engine's."""
        return self._engine.idle()
