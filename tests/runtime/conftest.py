"""A runtime on the echo model, and a plugin with engines that misbehave."""

from __future__ import annotations

import asyncio

import pytest

from myllm_core import Runtime, load_settings
from support.faulty import faulty_plugin, install


@pytest.fixture
def models_dir(tmp_path):
    install(tmp_path / "models", "echo:latest", "echo")
    install(tmp_path / "models", "echo:two", "echo")
    install(tmp_path / "models", "echo:three", "echo")
    return tmp_path / "models"


@pytest.fixture
def faulty(tmp_path, models_dir, monkeypatch):
    """Installs the faulty plugin for this process and its children; `faulty(mode)` makes a model of it."""
    with faulty_plugin(tmp_path / "site", monkeypatch):
        yield lambda mode, name="faulty:latest", format="faulty", **options: install(
            models_dir, name, format, load_options={"mode": mode, **options}
        )


@pytest.fixture
def settings(tmp_path, models_dir):
    def make(**more):
        return load_settings(models_dir=models_dir, data_dir=tmp_path / "data", **more)

    return make


@pytest.fixture(scope="session")
def run():
    """Runs `test(runtime)` on a fresh runtime; whatever happens, no worker is left."""

    def go(settings, test):
        async def main():
            async with Runtime(settings) as runtime:
                return await test(runtime)

        return asyncio.run(main())

    return go
