"""The ONNX engine of myllm. Import-light: ONNX Runtime and numpy come in when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from myllm_core import hookimpl

if TYPE_CHECKING:
    from myllm_core import Engine

MYLLM_API = 1


@hookimpl
def myllm_engines() -> Iterable[type[Engine]]:
    """The engine ``onnx``."""
    from myllm_onnx.engine import OnnxEngine

    return [OnnxEngine]
