"""Live servers for other people's clients: the real model, one that repeats, and one that says what it is told to."""

from __future__ import annotations

import pytest

from support.events import told_server
from support.server import install_echo, live_server
from support.smollm2 import install_smollm2


@pytest.fixture(scope="session")
def real(tmp_path_factory, smollm2_gguf):
    """A server with ``smollm2`` in a process of its own, as people run it."""
    home = tmp_path_factory.mktemp("real")
    install_smollm2(home / "models", smollm2_gguf)
    with live_server(home, isolation="process") as server:
        yield server


@pytest.fixture(scope="session")
def pretend(tmp_path_factory):
    """A server with ``echo``, ``slow`` (50 ms a word) and ``told`` (see ``support.events``)."""
    home = tmp_path_factory.mktemp("pretend")
    install_echo(home / "models")
    install_echo(home / "models", "slow:latest", load_options={"delay_ms": 50})
    with told_server(home) as server:
        yield server
