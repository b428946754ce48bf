"""The Optimum engine of myllm, and ``myllm convert``. Import-light: torch comes in when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Engine

MYLLM_API = 1


@hookimpl
def myllm_engines() -> Iterable[type[Engine]]:
    """The engine ``optimum``."""
    from myllm_optimum.engine import OptimumEngine

    return [OptimumEngine]
