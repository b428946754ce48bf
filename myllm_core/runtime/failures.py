"""What an engine raised, as an error of the tree, and what it gave that is none."""

from __future__ import annotations

import logging
from typing import Any

from myllm_core.engine import Engine, ModelFacts
from myllm_core.errors import EngineError, MyllmError, OutOfMemory

log = logging.getLogger("myllm.engine")


def as_error(error: BaseException, doing: str) -> MyllmError:
    """An error of the tree for whatever an engine raised; the log has the traceback of what isn't one."""
    if isinstance(error, MyllmError):
        return error
    log.warning("the engine failed while %s", doing, exc_info=error)
    if isinstance(error, MemoryError):
        return OutOfMemory(f"the engine ran out of memory while {doing}; use a smaller model, quantization or context")
    text = " ".join(f"{type(error).__name__}: {error}".split())[:2000]
    return EngineError(f"the engine failed while {doing}: {text}")


def checked(engine: Any, name: str) -> Engine:
    """What an engine's ``load`` gave, when it is an engine with facts. Raises ``EngineError`` that says what it is."""
    if not isinstance(engine, Engine):
        raise EngineError(f"the load method of the {name} engine gave {_kind(engine)}, no engine; return cls(…)")
    if not isinstance(engine.facts, ModelFacts):
        raise EngineError(f"facts of the {name} engine gave {_kind(engine.facts)}; make it a property with ModelFacts")
    return engine


def _kind(value: Any) -> str:
    return "a method" if callable(value) else type(value).__name__
