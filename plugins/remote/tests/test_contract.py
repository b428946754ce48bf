"""The engine and the downloader keep the contracts, with another myllm as the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from myllm_remote.downloader import RemoteDownloader
from myllm_remote.engine import RemoteEngine

from myllm_core.testing import DownloaderCase, DownloaderContract, EngineCase, EngineContract
from support.server import LiveServer, live_server

from .conftest import MakeModel


@pytest.fixture(scope="session")
def smollm2_server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Another myllm with the real model on llama.cpp, in a process of its own."""
    from myllm_core.models.store import ModelStore
    from myllm_core.plugins import load_plugins
    from myllm_core.transfer.pull import pull

    class Quiet:
        def message(self, text: str) -> None: ...

        def file(self, path: str, done: int, total: int | None) -> None: ...

    home = tmp_path_factory.mktemp("smollm2")
    store = ModelStore(home / "models")
    pull(f"file:{smollm2_gguf}", plugins=load_plugins(), store=store, progress=Quiet(), name="smollm2")
    # a cache for each sequence, so that no reply depends on its company
    options = {"llamacpp": {"n_ctx": 2048, "n_parallel": 4, "kv_unified": False, "cache_disk": 0, "n_threads": 1}}
    with live_server(home, isolation="process", engine_options=options) as server:
        yield server


@pytest.mark.model
class TestSmolLM2(EngineContract):
    """llama.cpp on the other side: grammars, log probabilities, embeddings, all sampling options."""

    @pytest.fixture
    def case(self, smollm2_server: LiveServer, make_model: MakeModel) -> EngineCase:
        model = make_model(f"http://127.0.0.1:{smollm2_server.port}/v1", model="smollm2:latest")
        return EngineCase(RemoteEngine, model)


class TestDownloader(DownloaderContract):
    @pytest.fixture
    def case(self, upstream: LiveServer) -> DownloaderCase:
        url = f"http://127.0.0.1:{upstream.port}/v1"
        return DownloaderCase(
            RemoteDownloader,
            f"remote:{url}#echo",
            missing=(f"remote:{url}#no-such-model",),
            bad=(
                f"remote:{url}",
                "remote:ftp://host/v1#m",
                "remote:http://user:word@host/v1#m",
                "remote:http://h/v1?k=1#m",
            ),
        )
