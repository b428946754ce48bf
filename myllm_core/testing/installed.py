"""The contracts for all that one installed plugin offers: what ``myllm plugins check`` runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from myllm_core.discovery import Plugin
from myllm_core.downloader import Downloader
from myllm_core.errors import SessionNotFound
from myllm_core.plugins import Plugins
from myllm_core.runtime.wire import unpack_model
from myllm_core.session_store import SessionStore
from myllm_core.testing.downloader import DownloaderCase, DownloaderContract
from myllm_core.testing.engine import EngineCase, EngineContract
from myllm_core.testing.session_store import SessionStoreContract


def contracts(order: Mapping[str, Any]) -> dict[str, type[Any]]:
    """Test classes by name, for pytest to collect.

    ``order`` has ``plugin`` (name, value and group of its entry point), ``models`` (packed, by engine),
    ``references`` (by downloader) and ``load_options`` (of its engines).
    """
    entry = Plugin(EntryPoint(*order["plugin"]))
    plugins = Plugins([entry], [], lambda text: None)
    models: Mapping[str, Any] = order["models"]
    found: dict[str, type[Any]] = {}
    for name, (_, engine) in plugins.engines().items():
        if name in models:
            found[_title("engine", name)] = _engine_tests(
                EngineCase(engine, unpack_model(models[name]), order["load_options"])
            )
    for downloader in {type(made) for made in plugins.downloaders().values()}:
        reference = order["references"].get(downloader.name, "")
        found[_title("downloader", downloader.name)] = _downloader_tests(downloader, reference)
    plugins.entries(load=True)
    for name in entry.offers.get("session_stores", []):
        found[_title("store", name)] = _store_tests(plugins.session_store(name))
    return found


def _title(kind: str, name: str) -> str:
    return f"Test_{kind}_{re.sub(r'[^a-z0-9]', '_', name)}"


def _engine_tests(tested: EngineCase) -> type[Any]:
    class EngineTests(EngineContract):
        @pytest.fixture
        def case(self) -> EngineCase:
            return tested

    return EngineTests


def _downloader_tests(downloader: type[Downloader], reference: str) -> type[Any]:
    class DownloaderTests(DownloaderContract):
        @pytest.fixture
        def case(self) -> DownloaderCase:
            return DownloaderCase(downloader, reference)

    return DownloaderTests


def _store_tests(store: type[SessionStore]) -> type[Any]:
    class StoreTests(SessionStoreContract):
        persists = _persists(store)

        @pytest.fixture
        def open_store(self, tmp_path: Path) -> Callable[[], SessionStore]:
            if not self.persists:
                pytest.skip("this store forgets when it is closed")
            return lambda: store.open("", tmp_path)

    if not StoreTests.persists:
        StoreTests.store = pytest.fixture(lambda self, tmp_path: store.open("", tmp_path))  # type: ignore[method-assign]
    return StoreTests


def _persists(store: type[SessionStore]) -> bool:
    """Whether a session outlasts closing; stores in memory say so by forgetting it."""
    with tempfile.TemporaryDirectory() as folder:
        first = store.open("", Path(folder))
        first.create("contract")
        first.close()
        second = store.open("", Path(folder))
        try:
            second.get("contract")
        except SessionNotFound:
            return False
        finally:
            second.close()
    return True
