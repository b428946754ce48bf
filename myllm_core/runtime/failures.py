"""What an engine raised, as an error of the tree."""

from __future__ import annotations

from myllm_core.errors import EngineError, MyllmError, OutOfMemory


def as_error(error: BaseException, doing: str) -> MyllmError:
    """An error of the tree for whatever an engine raised."""
    if isinstance(error, MyllmError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory(f"the engine ran out of memory while {doing}; use a smaller model, quantization or context")
    text = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
    return EngineError(f"the engine failed while {doing}: {text}")
