"""The kit's tests of a downloader, with a mirror on a socket."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from myllm_mirror.downloader import MirrorDownloader

from myllm_core.testing import DownloaderCase, DownloaderContract


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    data = b"weights" * 1000
    (folder / "tiny").mkdir()
    (folder / "tiny" / "tiny.gguf").write_bytes(data)
    file = {"path": "tiny.gguf", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps({"tiny": {"revision": "3", "files": [file]}, "odd": {}}))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"mirror:http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestDownloader(DownloaderContract):
    @pytest.fixture
    def case(self, mirror):
        return DownloaderCase(
            MirrorDownloader,
            f"{mirror}#tiny",
            missing=(f"{mirror}#none", f"{mirror}/elsewhere#tiny"),
            bad=(mirror, "mirror:ftp://host/x#tiny", "mirror:#tiny"),
            installs=False,  # it is no whole model
        )
