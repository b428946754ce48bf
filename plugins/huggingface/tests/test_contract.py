"""The hf: downloader keeps the contract of every downloader, against a hub on a real socket."""

from __future__ import annotations

import pytest
from myllm_huggingface.downloader import HuggingFaceDownloader

from myllm_core.testing import DownloaderCase, DownloaderContract


class TestHuggingFace(DownloaderContract):
    @pytest.fixture
    def case(self, hub):
        hub.add("maker/tiny", {"tiny-Q4_K_M.gguf": hub.gguf}, revisions=("main", hub.commit))
        missing = ("hf:maker/none", "hf:maker/tiny:Q9_X", "hf:maker/tiny@nowhere")
        return DownloaderCase(HuggingFaceDownloader, "hf:maker/tiny:Q4_K_M", missing, ("hf:maker", "hf:a/b/c"))
