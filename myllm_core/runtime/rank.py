"""How well documents answer a query: by a model that scores them, else by one that makes embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from myllm_core.errors import UnsupportedError
from myllm_core.runtime.slot import Lease
from myllm_core.types import Scores


async def score(lease: Lease, query: str, documents: Sequence[str]) -> Scores:
    """A score per document. Raises ``UnsupportedError`` when the model neither scores nor makes embeddings."""
    handle = lease.handle
    capabilities = handle.facts["capabilities"]
    if "rerank" in capabilities:
        return await handle.rerank(query, list(documents), lease.left)
    if "embed" not in capabilities:
        raise UnsupportedError(
            f"{handle.order.model.name} on the {lease.engine} engine scores no documents and makes no embeddings; "
            "use a reranker or an embedding model"
        )
    made = await handle.embed([query, *documents], lease.left)
    asked, *vectors = made.vectors
    return Scores([_cosine(asked, vector) for vector in vectors], made.prompt_tokens, "embeddings")


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    length = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / length if length else 0.0
