"""A live server with the real model for other people's clients, and npm's packages for those from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from support.npm import install
from support.server import LiveServer, install_echo, live_server
from support.smollm2 import install_smollm2

NODE = Path(__file__).parent / "node"
CAPITAL = "What is the capital of France?"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"type": "string", "enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Iterator[LiveServer]:
    """A server with ``smollm2`` in a process of its own, and ``slow``, which echoes a word in 50 ms."""
    home = tmp_path_factory.mktemp("clients")
    install_smollm2(home / "models", smollm2_gguf)
    install_echo(home / "models", "slow:latest", load_options={"delay_ms": 50})
    with live_server(home, isolation="process") as server:
        yield server


@pytest.fixture(scope="session")
def base_url(live: LiveServer) -> str:
    return f"http://127.0.0.1:{live.port}/v1"


@pytest.fixture(scope="session")
def openai_client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=100) as client:
        yield client


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the packages of ``node/package.json``, installed once."""
    return install(NODE)
