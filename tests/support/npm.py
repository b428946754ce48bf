"""Clients from npm."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

_CACHE = Path(__file__).parents[2] / ".cache" / "node"


def install(project: Path) -> Path:
    """A folder with the packages of a project's ``package.json``, installed once; skips where that can't be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node here; these clients are from npm")
    wanted = (project / "package.json").read_bytes()
    folder = _CACHE / hashlib.sha256(wanted).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # of tests that run side by side, one installs
        if not (folder / "node_modules").exists():
            (folder / "package.json").write_bytes(wanted)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
            if made.returncode:
                pytest.skip(f"npm can't install the clients: {made.stderr.strip()[-200:]}")
    return folder
