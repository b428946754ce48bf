"""A TokenEngine whose tokens are bytes: small enough to reason about, real enough for the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from myllm_core import MemoryEstimate, ModelFacts, Sequence, Support, TokenEngine, TokenOut

BOS, IM_START, IM_END, THINK = 256, 257, 258, 259
CONTROL = {"<s>": BOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
ADDED = {"<think>": THINK}


@dataclass
class _Running:
    sequence: Sequence
    reply: list[int]


class ByteEngine(TokenEngine):
    """Answers with ``script`` (token ids), one token a step for each sequence, then IM_END."""

    name = "bytes"
    formats = frozenset({"bytes"})
    sampling = frozenset({"temperature", "seed"})

    def __init__(self, script: list[int] | bytes = b"ok", **facts: Any) -> None:
        self.script = list(script)
        self.added: list[Sequence] = []
        self.cancelled: list[int] = []
        self.running: dict[int, _Running] = {}
        self.fail_at_step: int | None = None
        self.steps = 0
        self.max_sequences = 2
        values: dict[str, Any] = {
            "context_size": 2000,
            "vocab_size": 260,
            "bos_token": BOS,
            "bos_text": "<s>",
            "eos_text": "<|im_end|>",
            "eos_tokens": frozenset({IM_END}),
            "special_tokens": tuple(CONTROL),
            "added_tokens": tuple(ADDED),
        }
        self._facts = ModelFacts(**{**values, **facts})

    @classmethod
    def probe(cls, model: Any) -> Support:
        return Support(1, "for tests")

    @classmethod
    def estimate(cls, model: Any, options: Any) -> MemoryEstimate:
        return MemoryEstimate(0)

    @classmethod
    def load(cls, model: Any, options: Any, progress: Any) -> ByteEngine:
        return cls()

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def tokenize(self, text: str, special: bool) -> list[int]:
        known = {**ADDED, **(CONTROL if special else {})}  # like llama.cpp: added tokens always match
        tokens: list[int] = []
        while text:
            marker = next((m for m in known if text.startswith(m)), None)
            if marker:
                tokens.append(known[marker])
                text = text[len(marker) :]
            else:
                tokens += text[0].encode("utf-8", "replace")
                text = text[1:]
        return tokens

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<think>" if token == THINK else b""

    def add(self, sequence: Sequence) -> None:
        self.added.append(sequence)
        self.running[sequence.id] = _Running(sequence, [*self.script, IM_END])

    def cancel(self, sequence_id: int) -> None:
        self.cancelled.append(sequence_id)
        self.running.pop(sequence_id, None)

    def step(self) -> list[TokenOut]:
        self.steps += 1
        if self.steps == self.fail_at_step:
            raise RuntimeError("the device is gone")
        return [
            TokenOut(i, r.reply.pop(0), logprob=-0.5, top=[(65, -0.5), (66, -1.5)])
            for i, r in self.running.items()
            if r.reply
        ]


@pytest.fixture(scope="session")
def byte_engine() -> type[ByteEngine]:
    return ByteEngine
