"""The built-in downloaders keep the contract of every downloader."""

from __future__ import annotations

from pathlib import Path

import pytest

from myllm_core.testing import DownloaderCase, DownloaderContract
from myllm_core.transfer.downloaders import FileDownloader, HttpDownloader
from support.gguf import small_gguf
from support.pulling import StartServer
from support.wild_server import Exchange

DATA = small_gguf(20_000)


class TestFile(DownloaderContract):
    @pytest.fixture
    def case(self, tmp_path: Path) -> DownloaderCase:
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "tiny.gguf").write_bytes(DATA)
        missing = (f"file:{folder}/none.gguf", f"file:{folder}/none/tiny.gguf")
        return DownloaderCase(FileDownloader, f"file:{folder}/tiny.gguf", missing, ("file://other.example/x.gguf",))


class TestHttp(DownloaderContract):
    @pytest.fixture
    def case(self, serve: StartServer) -> DownloaderCase:
        def answer(exchange: Exchange) -> None:
            if exchange.target == "/tiny.gguf":
                exchange.file(DATA)
            else:
                exchange.answer(status=404)

        server = serve(answer)
        bad = ("http://user@:80/x.gguf", "http://[::1/x.gguf")
        return DownloaderCase(HttpDownloader, server.url("/tiny.gguf"), (server.url("/none.gguf"),), bad)
