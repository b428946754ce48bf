"""What an import costs: the packages that are heavy stay out until they are needed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files

import pytest

import myllm_core

HEAVY = {
    "torch", "transformers", "llama_cpp", "onnxruntime", "ctransformers", "huggingface_hub", "numpy", "ray",
    "uvicorn", "fastapi", "starlette", "jinja2", "urllib3", "sqlite3", "asyncio", "multiprocessing", "pydantic",
    "typer", "rich", "prompt_toolkit",
}  # fmt: skip


def imported_by(statement: str) -> set[str]:
    """The heavy packages that ``statement`` imports, in a fresh interpreter."""
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout)) & HEAVY


def test_importing_the_core_imports_nothing_heavy() -> None:
    assert imported_by("import myllm_core") == set()


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("from myllm_core import Engine, Downloader, SessionStore, hookimpl", set()),
        ("from myllm_core import load_plugins; load_plugins()", set()),
        (
            "from myllm_core import load_settings; load_settings()",
            {"pydantic", "asyncio"},
        ),  # the settings library's own
    ],
)
def test_what_a_plugin_or_a_command_needs_imports_little(statement: str, allowed: set[str]) -> None:
    assert imported_by(statement) <= allowed


@pytest.mark.parametrize("name", myllm_core.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(myllm_core, name)
    assert name in ("Event", "hookimpl") or value.__name__ == name


def test_the_lazy_table_and_the_public_names_agree() -> None:
    assert sorted(myllm_core.__all__) == myllm_core.__all__
    assert set(myllm_core._HOME) == set(myllm_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = myllm_core.Nothing


def test_every_public_name_of_a_module_is_documented() -> None:
    undocumented = [
        name for name in myllm_core.__all__ if name != "Event" and not (getattr(myllm_core, name).__doc__ or "").strip()
    ]
    assert undocumented == []


@pytest.mark.parametrize("package", ["myllm_core", "myllm_cli", "myllm_server"])
def test_each_package_says_that_it_is_typed(package: str) -> None:
    assert (files(package) / "py.typed").is_file()
