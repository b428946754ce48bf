"""What sentence-transformers makes of some texts with the test model all-MiniLM-L6-v2, recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path

from myllm_core import Engine

_RECORD = json.loads(Path(__file__).with_name("minilm_vectors.json").read_text(encoding="utf-8"))


def assert_vectors_agree(engine: Engine, difference: float) -> None:
    """All have length 1, and the cosine of each with the recorded one is 1 but for ``difference``."""
    made = engine.embed(_RECORD["texts"])
    for text, vector, expected in zip(_RECORD["texts"], made.vectors, _RECORD["vectors"], strict=True):
        assert abs(math.hypot(*vector) - 1) < 1e-5
        assert cosine(vector, expected) > 1 - difference, text
    assert made.prompt_tokens == 257  # as transformers counts, with [CLS] and [SEP]


def cosine(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
