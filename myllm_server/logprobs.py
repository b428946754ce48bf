"""Log probabilities as JSON values, the same in every dialect."""

from __future__ import annotations

from typing import Any

from myllm_core.types import TokenLogprob

_LEAST = -9999.0


def logprob(one: TokenLogprob) -> dict[str, Any]:
    """A token with its log probability and its bytes."""
    return {"token": one.token, "logprob": finite(one.logprob), "bytes": list(one.bytes)}


def finite(value: float) -> float:
    """A log probability that JSON has: there is no -inf, which a token that can't come has."""
    return max(value, _LEAST)
