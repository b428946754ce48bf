"""Ctrl+C while a file is fetched: what is kept, and what is said to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from myllm_core.errors import NetworkError
from myllm_core.transfer.pull import PullInterrupted
from support.gguf import small_gguf
from support.pulling import Puller, StartServer, Told

DATA = small_gguf(600_000)
AddPlugin = Callable[[str], None]


@dataclass
class Impatient(Told):
    """Somebody who presses Ctrl+C as soon as so many bytes of the file at ``path`` are here."""

    after: int = 100_000
    path: str = ""

    def file(self, path: str, done: int, total: int | None) -> None:
        if done >= self.after and path.endswith(self.path):
            raise KeyboardInterrupt


def interrupted(puller: Puller, reference: str, told: Impatient | None = None) -> int:
    """How many bytes are said to be kept; as many really are."""
    puller.told = told or Impatient()
    with pytest.raises(PullInterrupted) as caught:
        puller(reference)
    puller.told = Told()
    puller.assert_nothing_installed()
    assert puller.partial_bytes == caught.value.kept
    return caught.value.kept


def test_a_server_that_can_resume(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA))
    kept = interrupted(puller, server.url())
    assert 100_000 <= kept < len(DATA)
    model = puller(server.url())
    assert server.seen[-1].headers["range"] == f"bytes={kept}-"
    assert puller.bytes_of(model) == DATA


def test_a_server_that_gives_nothing_to_know_the_file_by(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA, etag=""))
    assert interrupted(puller, server.url()) == 0
    assert puller.bytes_of(puller(server.url())) == DATA


def test_such_a_servers_failure_promises_nothing(serve: StartServer, puller: Puller) -> None:
    server = serve(lambda exchange: exchange.file(DATA, etag="", stop=100_000 if exchange.number else None))
    with pytest.raises(NetworkError, match="; try again later$"):
        puller(server.url())
    assert puller.partial_bytes == 0


def test_a_source_that_writes_its_files_itself(puller: Puller, tmp_path: Path) -> None:
    """The whole ones of several files are kept, for their revision is known; the one that was being written isn't."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(DATA)
    assert interrupted(puller, str(folder)) == 0
    (folder / "config.json").write_text("{" + " " * 50_000 + "}")
    assert interrupted(puller, str(folder), Impatient(after=50_000, path="config.json")) == len(DATA)
    assert puller.bytes_of(puller(str(folder))) == DATA


def test_a_downloader_without_a_revision_keeps_nothing(puller: Puller, add_plugin: AddPlugin) -> None:
    add_plugin("""
from myllm_core import Downloader, RemoteFile, Resolution, hookimpl
MYLLM_API = 1
class Odd(Downloader):
    name, schemes = "odd", frozenset({"odd"})
    def resolve(self, reference):
        return Resolution((RemoteFile("a.txt"), RemoteFile("b.txt")), "odd", "odd:it", format="odd")
    def fetch(self, file, sink):
        sink.write(b"some text " * 11_000)
@hookimpl
def myllm_downloaders():
    return [Odd]
""")
    assert interrupted(puller, "odd:it", Impatient(path="b.txt")) == 0
