"""The examples of the documents do what they say: each ``curl`` and each Python program, as it stands.

The echo engine answers under the name ``smollm2``, so the answers are known.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.program import serving
from support.server import install_echo

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    install_echo(home / "models", "smollm2:latest")
    install_echo(home / "models")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MYLLM_")}
    places = {"MYLLM_MODELS_DIR": home / "models", "MYLLM_DATA_DIR": home, "MYLLM_CONFIG": home / "config.toml"}
    return kept | {name: str(path) for name, path in places.items()}


@pytest.fixture(scope="module")
def address(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving([sys.executable, "-m", "myllm_cli"], env, tmp_path_factory.mktemp("work")) as address:
        yield address


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def curls(name: str) -> list[str]:
    """Every ``curl`` command of a page; one may go over several lines."""
    shell = "\n".join(blocks(name, "sh"))
    return re.findall(r"^curl .*?(?=^\w|\Z)", shell, re.MULTILINE | re.DOTALL)


CURLS = [(name, command) for name in ("README.md", "docs/API.md") for command in curls(name)]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
@pytest.mark.parametrize(("name", "command"), CURLS, ids=lambda text: text.splitlines()[0][:60])
def test_every_curl_works_as_it_stands(address: str, name: str, command: str) -> None:
    command = ADDRESS.sub(address, command).replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{name}: {command}\n{done.stdout}{done.stderr}"
    frames = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
    if frames:
        last = json.loads(frames[-1])
        assert last["done"] is True and "error" not in last
    else:
        assert "error" not in json.loads(done.stdout)


def run_python(code: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", blocks("docs/API.md", "python"))
def test_the_python_clients_of_the_api_page_stream(address: str, env: dict[str, str], code: str) -> None:
    asked = "What is my name?" if "previous_response_id" in code else "Why is the sky blue?"
    assert run_python(ADDRESS.sub(address, code), env).strip() == asked


@pytest.mark.parametrize(
    ("name", "said"), [("README.md", "Why is the sky blue?"), ("docs/ARCHITECTURE.md", "Hellostop 2\n")]
)
def test_the_python_programs_run(env: dict[str, str], name: str, said: str) -> None:
    (code,) = blocks(name, "python")
    assert run_python(code, env) == said


def test_there_are_examples() -> None:
    assert len(CURLS) > 12
