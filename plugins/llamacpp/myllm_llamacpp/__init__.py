"""The llama.cpp engine of myllm, for GGUF files. Import-light: llama.cpp and numpy come in when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Engine

MYLLM_API = 1


@hookimpl
def myllm_engines() -> Iterable[type[Engine]]:
    """The engine ``llamacpp``."""
    from myllm_llamacpp.engine import LlamaCppEngine

    return [LlamaCppEngine]
