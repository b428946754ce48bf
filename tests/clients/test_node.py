"""Clients from npm: OpenAI's own and Vercel's AI SDK."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from clients.conftest import NODE, WEATHER
from support.server import LiveServer, eventually

pytestmark = pytest.mark.model


@pytest.mark.parametrize("script", ["openai.mjs", "ai.mjs"])
def test_a_client_of_npm(script: str, node_modules: Path, base_url: str, live: LiveServer) -> None:
    shutil.copy(NODE / script, node_modules / script)  # packages are looked for beside the script
    command = ["node", script, base_url, json.dumps(WEATHER)]
    done = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
    eventually(lambda: live.running() == 0, 10)
