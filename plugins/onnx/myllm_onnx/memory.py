"""How much memory a model takes, and how long a context that leaves room for."""

from __future__ import annotations

from myllm_core import MemoryEstimate
from myllm_core.errors import OutOfMemory
from myllm_onnx.layout import Layout
from myllm_onnx.options import LoadSettings

AUTO_LIMIT = 8192
"""The longest context that is chosen without being asked for."""

_LEAST_CONTEXT = 512
_CACHE_SHARE = 0.25  # of the memory left beside the weights
_PAGE = 256
_FIXED = 64 * 2**20  # the library, the tokenizer and what a forward pass needs


def context_size(layout: Layout, settings: LoadSettings, weights: int, free: int) -> int:
    """Tokens that one sequence gets: what was asked for, else what model and ``free`` bytes of memory suggest."""
    trained = layout.trained_context
    if settings.max_length:
        return min(settings.max_length, trained or settings.max_length)
    each = _cache_bytes(layout) * settings.max_batch_size
    affordable = int((free - weights) * _CACHE_SHARE / each) if each else AUTO_LIMIT
    least = min(trained or _LEAST_CONTEXT, _LEAST_CONTEXT)
    return max(least, min(trained or AUTO_LIMIT, AUTO_LIMIT, affordable // _PAGE * _PAGE))


def _cache_bytes(layout: Layout) -> int:
    """For each token; a plain decoder gives its whole cache once more in each step."""
    return layout.cache_bytes * (1 if layout.kind == "genai" else 2)


def estimate(layout: Layout, settings: LoadSettings, weights: int, free: int) -> MemoryEstimate:
    """Bytes of weights and cache, on the device where the provider has one."""
    cache = 0
    if layout.kind != "embedding":
        tokens = context_size(layout, settings, weights, free) * settings.max_batch_size
        cache = tokens * _cache_bytes(layout)
    if settings.provider == "cpu":
        return MemoryEstimate(host=weights + cache + _FIXED)
    return MemoryEstimate(host=_FIXED, device=weights + cache)


def check_room(layout: Layout, settings: LoadSettings, weights: int, free: int) -> None:
    """Raises ``OutOfMemory`` when the weights don't fit: Linux would grant the memory, then kill the process."""
    if settings.provider == "cpu" and weights > free:
        raise OutOfMemory(
            f"the weights need {weights / 2**20:.0f} MiB of memory and {free / 2**20:.0f} are free; "
            "take a smaller model",
            needed=weights,
            free=free,
        )
