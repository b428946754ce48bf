"""Disks that are full, too small or not writable: rows G14 to G16 of the threats."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from myllm_core.errors import StorageError
from myllm_core.models.store import ModelStore
from support.gguf import small_gguf
from support.pulling import Puller, StartServer
from support.wild_server import Exchange

DATA = small_gguf(6_000_000)
SMALL = small_gguf(50_000)

Mount = Callable[[str], None]


@pytest.fixture
def mount(puller: Puller) -> Iterator[Mount]:
    """``mount("size=4m")`` makes the models directory a disk of its own; again to change it."""
    folder = puller.store.models_dir
    folder.mkdir()
    mounted = False

    def mount_(options: str) -> None:
        nonlocal mounted
        how = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *how, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk can't be mounted here: {done.stderr.strip()}")
        mounted = True

    yield mount_
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_g14_a_disk_too_small_is_known_before_the_download(serve: StartServer, puller: Puller, mount: Mount) -> None:
    mount("size=4m")
    server = serve(lambda exchange: exchange.file(DATA if "large" in exchange.target else SMALL))
    small = puller(server.url("/small.gguf"))
    server.seen.clear()
    with pytest.raises(StorageError, match=r"not enough disk space .*6\.0 MB more are needed") as caught:
        puller(server.url("/large.gguf"))
    assert len(server.seen) == 1  # what is there was asked, nothing fetched
    assert caught.value.data["needed"] == len(DATA)
    assert 0 < caught.value.data["free"] < 4 * 2**20
    assert [model.name for model in puller.store.list_models()] == [small.name]
    assert puller.partial_bytes == 0
    mount("size=20m")
    puller(server.url("/large.gguf"))


def test_g14_a_disk_that_fills_up_on_the_way(serve: StartServer, puller: Puller, mount: Mount) -> None:
    def handler(exchange: Exchange) -> None:
        if exchange.start:
            exchange.file(DATA)
        else:  # without a size, so that nobody can know
            exchange.head(Transfer_Encoding="chunked", ETag='"v1"')
            exchange.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA))

    mount("size=4m")
    server = serve(handler)
    with pytest.raises(StorageError, match="the disk is full"):
        puller(server.url())
    assert puller.store.list_models() == []
    assert puller.partial_bytes > 2 * 2**20
    mount("size=20m")
    kept = puller.partial_bytes
    model = puller(server.url())
    assert server.seen[-1].headers["range"] == f"bytes={kept}-"
    assert puller.bytes_of(model) == DATA


PULL = """
import resource, sys
from pathlib import Path
from support.pulling import Puller
from myllm_core.errors import MyllmError
from myllm_core.models.store import ModelStore
from myllm_core.plugins import load_plugins
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    print(Puller(ModelStore(Path(sys.argv[1])), load_plugins())(sys.argv[2]).name)
except MyllmError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


def test_g15_a_limit_on_file_sizes(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA))
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", PULL, str(puller.store.models_dir), server.url(), str(3_000_000)]
    environment = {**os.environ, "PYTHONPATH": tests}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6, done.stderr
    assert "larger than this disk or your limits allow" in done.stdout
    puller.assert_nothing_installed()
    kept = puller.partial_bytes
    assert kept > 1_000_000
    model = puller(server.url())
    assert server.seen[-1].headers["range"] == f"bytes={kept}-"
    assert puller.bytes_of(model) == DATA


def test_g16_a_read_only_models_directory(serve: StartServer, puller: Puller, mount: Mount) -> None:
    mount("size=4m")
    server = serve(lambda exchange: exchange.file(SMALL))
    model = puller(server.url())
    mount("ro")
    assert [m.name for m in puller.store.list_models()] == [model.name]
    assert puller(server.url(), name=None).name == model.name  # nothing to write
    with pytest.raises(StorageError, match="read-only"):
        puller(server.url(), force=True)


def test_g16_a_file_where_the_models_directory_should_be(serve: StartServer, puller: Puller, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    puller.store = ModelStore(tmp_path / "taken")
    with pytest.raises(StorageError, match="models directory"):
        puller(serve(lambda exchange: exchange.file(SMALL)).url())
