"""Ollama's own client from npm against a live server; skipped where there is no node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.npm import install
from support.server import eventually

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node_modules():
    """A folder with the packages of ``node/package.json``, installed once."""
    return install(NODE)


def test_the_client_of_npm(node_modules, pretend):
    shutil.copy(NODE / "ollama.mjs", node_modules / "ollama.mjs")  # packages are looked for beside the script
    command = ["node", "ollama.mjs", f"http://127.0.0.1:{pretend.port}/ollama"]
    done = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
    eventually(lambda: pretend.running() == 0, 10)
