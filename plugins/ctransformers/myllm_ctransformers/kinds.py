"""What is known of a checked file."""

from __future__ import annotations

from dataclasses import dataclass

OLD_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14})
"""Tensor types that the library of September 2023 knows, by number."""
MAX_WORD = 4096
"""Bytes that a word of a vocabulary may have."""


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
        """Whether llama.cpp of 2023 runs it. Its SentencePiece vocabularies put a space before the first word."""
        return self.kind in ("llama", "gguf")
