"""Old files: made once for all tests, of the real model and of random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .legacy_files import early_gguf, tiny_gpt2


@pytest.fixture(scope="session")
def early(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a GGUF file of 2023."""
    path = tmp_path_factory.mktemp("early") / "smollm2-early.gguf"
    early_gguf(smollm2_gguf, path)
    return path


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 of random numbers in the format before GGUF, with a word for each byte."""
    path = tmp_path / "tiny-gpt2.bin"
    path.write_bytes(tiny_gpt2())
    return path
