"""Servers over the echo engine, one for all tests that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from support.server import LiveServer, StartServer, install_echo, live_server


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the model ``echo``, and ``slow`` that takes 50 ms for each word."""
    home = tmp_path_factory.mktemp("home")
    install_echo(home / "models")
    install_echo(home / "models", "slow:latest", load_options={"delay_ms": 50})
    return home


@pytest.fixture(scope="session")
def live(home: Path) -> Iterator[LiveServer]:
    """A server with default settings."""
    with live_server(home) as server:
        yield server


@pytest.fixture
def start(home: Path, tmp_path: Path) -> StartServer:
    """Start a server with other settings, and a session store of its own."""

    def begin(**settings: Any) -> AbstractContextManager[LiveServer]:
        return live_server(home, **({"data_dir": tmp_path / "data"} | settings))

    return begin
