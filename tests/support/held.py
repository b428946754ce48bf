"""Replies that are held to a schema."""

from __future__ import annotations

import schemas

from myllm_core import TokenEngine
from myllm_core.testing.engine.given import ask_together

_SEEDS = 3


def assert_replies_follow(engine: TokenEngine) -> None:
    """Some replies for each of the schemas, at temperature 1 and side by side, are JSON that is valid."""
    asked = [(name, seed) for name in schemas.SCHEMAS for seed in range(_SEEDS)]
    together = max(1, engine.max_sequences)
    for first in range(0, len(asked), together):
        some = asked[first : first + together]
        replies = ask_together(engine, [schemas.request(name, seed) for name, seed in some], patience=300)
        for (name, seed), reply in zip(some, replies, strict=True):
            assert reply.ended_well().reason == "stop", (name, seed, reply.text)
            assert not schemas.problem(name, reply.text), (name, seed)
