"""Engines on models that lie in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from myllm_core import TokenEngine
from myllm_core.testing import EngineCase, model_of


def case_in(folder: Path, engine: type[TokenEngine], options: Mapping[str, Any], format: str = "onnx") -> EngineCase:
    """An engine on a model of all files below a folder, the weights first; patient, since machines may be busy."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.suffix not in (".onnx", ".safetensors"))
    return EngineCase(engine, model_of(*files, format=format), options, patience=240)
