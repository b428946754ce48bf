"""A tiny model of random weights for what is tested many times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_onnx(
    smollm2_safetensors: Path,
    export_onnx: Callable[[str, Path, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A plain decoder of the test model's kind."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_llama(folder, smollm2_safetensors)
    return export_onnx("tiny-1.onnx", folder, "text-generation-with-past")
