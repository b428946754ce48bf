"""The engine and the downloader keep the contracts, with another myllm as the server."""

from __future__ import annotations

import pytest
from myllm_remote.downloader import RemoteDownloader
from myllm_remote.engine import RemoteEngine

from myllm_core.testing import DownloaderCase, DownloaderContract, EngineCase, EngineContract
from support.server import LiveServer

from .conftest import MakeModel


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
