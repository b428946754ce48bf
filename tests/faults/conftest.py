"""Real server processes over echo models, engines that misbehave, and the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soaking.server import Server, gone
from support.faults import Start
from support.faulty import faulty_plugin, install


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A models directory with ``echo``, ``slow`` (50 ms a word) and faulty models, and their plugin installed."""
    home = tmp_path_factory.mktemp("models")
    install(home / "models", "echo:latest", "echo")
    install(home / "models", "slow:latest", "echo", load_options={"delay_ms": 50})
    for mode in ("killed", "floods", "hog"):
        install(home / "models", f"{mode}:latest", "faulty", load_options={"mode": mode})
    install(home / "models", "huge:latest", "faulty", load_options={"mode": "fine", "size": 10**15})
    with pytest.MonkeyPatch.context() as patch, faulty_plugin(home / "site", patch):
        yield home / "models"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts server processes; at the end each stops when told to, leaves no worker, and has logged no bug."""
    servers: list[Server] = []

    def begin(models: Path, home: Path | None = None, **settings: Any) -> Server:
        values = {name: str(value) for name, value in settings.items()}
        server = Server(home or tmp_path_factory.mktemp("server"), models, values)
        server.start()
        servers.append(server)
        return server

    yield begin
    for server in servers:
        workers = server.workers() if server.alive else []
        assert server.stop() in (0, -9), server.log.read_text()
        assert gone(workers)
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def server(models: Path, start: Start) -> Server:
    """One server for all tests of a file that leave it well; a busy worker may be silent for 2 seconds."""
    return start(models, hang_timeout="2s", ping_interval="500ms")
