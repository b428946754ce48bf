"""All tests that an engine and a downloader need: the kit's."""

import pytest
from myllm_echo.downloader import EchoDownloader
from myllm_echo.engine import EchoEngine

from myllm_core.testing import DownloaderCase, DownloaderContract, EngineCase, EngineContract, model_of


class TestEngine(EngineContract):
    @pytest.fixture
    def case(self, tmp_path):
        file = tmp_path / "echo.txt"
        file.write_text("echo\n")
        return EngineCase(EchoEngine, model_of(file, format="echo"))


class TestDownloader(DownloaderContract):
    @pytest.fixture
    def case(self):
        return DownloaderCase(EchoDownloader, "echo:latest")
