"""Small wheels that the tests build, a folder of them for pip, and a sink that keeps what it is given."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Build = Callable[..., Path]


class KeepingSink:
    """A sink in memory, with the room that the core would give."""

    def __init__(self, room: Path) -> None:
        self.data = b""
        self.size: int | None = None
        self.messages: list[str] = []
        self.room = room

    def write(self, data: bytes) -> None:
        self.data += data

    def expect(self, size: int) -> None:
        self.size = size

    def message(self, text: str) -> None:
        self.messages.append(text)

    def folder(self) -> Path:
        self.room.mkdir()
        return self.room


@pytest.fixture
def sink(tmp_path: Path) -> KeepingSink:
    return KeepingSink(tmp_path / "room")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """``wheels(name, version, {path: bytes})`` builds a wheel; pip sees only those, no index and no configuration."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def build(name: str, version: str, files: dict[str, bytes], links: dict[str, bytes] | None = None) -> Path:
        path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        content = files | {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{name},{_record(data)},{len(data)}\n" for name, data in content.items())
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in content.items():
                archive.writestr(member, data)
            for member, target in (links or {}).items():
                link = zipfile.ZipInfo(member)
                link.external_attr = 0o120777 << 16
                archive.writestr(link, target)
            archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
        return path

    return build


def _record(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
