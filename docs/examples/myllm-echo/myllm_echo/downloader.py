"""A downloader that makes its files up: ``echo:NAME``."""

from myllm_core import Downloader, RemoteFile, Resolution


class EchoDownloader(Downloader):
    """One file, five bytes, no network."""

    name = "echo"
    schemes = frozenset({"echo"})

    def resolve(self, reference):
        return Resolution((RemoteFile("echo.txt"),), f"echo:{reference.rest}", reference.text, "1", "MIT", "echo")

    def fetch(self, file, sink):
        sink.expect(5)
        sink.write(b"echo\n")
