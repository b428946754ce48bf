"""Ollama's own client from npm against a live server; skipped where there is no node."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from support.server import eventually

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node_modules():
    """A folder with the packages of ``node/package.json``, installed once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node here; this client is from npm")
    wanted = (NODE / "package.json").read_bytes()
    folder = Path(__file__).parents[2] / ".cache" / "node" / hashlib.sha256(wanted).hexdigest()[:12]
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        if made.returncode:
            pytest.skip(f"npm can't install the client: {made.stderr.strip()[-200:]}")
    return folder


def test_the_client_of_npm(node_modules, pretend):
    shutil.copy(NODE / "ollama.mjs", node_modules / "ollama.mjs")  # packages are looked for beside the script
    command = ["node", "ollama.mjs", f"http://127.0.0.1:{pretend.port}/ollama"]
    done = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
    eventually(lambda: pretend.running() == 0, 10)
