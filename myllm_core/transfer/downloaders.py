"""The downloaders that come with the core: files and folders of this machine, and plain web addresses."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

from myllm_core.downloader import Downloader, RemoteFile, Resolution, Sink
from myllm_core.errors import InvalidReference, NotFound
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.inspect import inspect_files
from myllm_core.models.reference import Reference, safe_name
from myllm_core.transfer.client import HttpClient, Response
from myllm_core.transfer.fetch import check_status, length_of
from myllm_core.transfer.paths import file_name, name_for, shard_names
from myllm_core.transfer.urls import mask_url, parse_url, public_url

_BLOCK = 2**20
_MAX_FILES = 500
_PATIENCE = 10.0
_WEIGHTS = frozenset({".gguf", ".safetensors", ".onnx"})
_BESIDE = frozenset(
    {".json", ".txt", ".md", ".jinja", ".tiktoken", ".yaml", ".yml", ".vocab", ".model", ".spm", ".data", ".onnx_data"}
)


@dataclass(frozen=True, slots=True)
class _LocalFile(RemoteFile):
    origin: Path = Path()


class FileDownloader(Downloader):
    """Copies a model file, all parts of a split one, or a folder: ``file:///x``, ``./x``, ``~/x``, ``/x``."""

    name = "file"
    schemes = frozenset({"file"})

    def resolve(self, reference: Reference) -> Resolution:
        """Find the files, and look into them before they are copied.

        Raises ``NotFound``, ``InvalidReference`` for what is neither file nor folder, ``StorageError`` when it can't be
        read, and what ``inspect_files`` raises.
        """
        path = _local_path(reference)
        with storage_errors(f"read {path}"):
            try:
                mode = path.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"there is no file or folder {path}") from None
            if stat.S_ISDIR(mode):
                folder, names = path, _model_files(path)
            elif stat.S_ISREG(mode):
                folder, names = path.parent, _parts(path)
            else:
                raise InvalidReference(f"{path} is neither a file nor a folder; give the path of a model file")
            inspect_files(folder, names)
            files = tuple(_local_file(folder, name) for name in names)
        changed = repr([(file.path, file.size, file.origin.stat().st_mtime_ns) for file in files])
        name = safe_name(path.name.replace(":", "-")) if stat.S_ISDIR(mode) else name_for(path.name)
        return Resolution(files, name, f"file:{path}", hashlib.sha256(changed.encode()).hexdigest()[:16])

    def fetch(self, file: RemoteFile, sink: Sink) -> None:
        """Copy the file. Raises ``StorageError``."""
        assert isinstance(file, _LocalFile)
        with storage_errors(f"read {file.origin}"):
            source = open_regular(file.origin)
        with source:
            sink.expect(os.fstat(source.fileno()).st_size)
            while True:
                with storage_errors(f"read {file.origin}"):
                    block = source.read(_BLOCK)
                if not block:
                    return
                sink.write(block)


def _local_path(reference: Reference) -> Path:
    text = reference.rest
    if text.startswith("//"):
        parts = urlsplit(f"file:{text}")
        if parts.netloc not in ("", "localhost"):
            raise InvalidReference(f"{reference.text}: files of other machines can't be read; write file:///the/path")
        text = url2pathname(parts.path)
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except (RuntimeError, ValueError) as error:
        raise InvalidReference(f"{reference.text} can't be a path: {error}") from None


def _local_file(folder: Path, name: str) -> _LocalFile:
    path = folder / name
    return _LocalFile(name, size=path.stat().st_size, origin=path)


def _parts(path: Path) -> list[str]:
    names = shard_names(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise NotFound(f"the model is split into {len(names)} files, and {path.parent / missing[0]} is missing")
    return names


def _model_files(folder: Path) -> list[str]:
    """The files in a folder and below that can belong to a model, so that other versions of the weights stay behind."""
    found: list[str] = []
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(top, name) for name in sorted(names) if not name.startswith(".")]
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
        if len(found) > _MAX_FILES:
            raise InvalidReference(f"{folder} holds more than {_MAX_FILES} files; give the model's own folder")
    suffixes = {name: Path(name).suffix.lower() for name in found}
    weights = [name for name in found if suffixes[name] in _WEIGHTS] or [n for n in found if suffixes[n] == ".bin"]
    if not weights:
        raise NotFound(f"there is no model in {folder}; give a folder with GGUF, safetensors or ONNX files")
    return weights + [name for name in found if suffixes[name] in _BESIDE and name not in weights]


class HttpDownloader(Downloader):
    """Fetches a model file, or all parts of a split one, from a web address."""

    name = "http"
    schemes: ClassVar[frozenset[str]] = frozenset({"https", "http"})

    def __init__(self) -> None:
        self._client = HttpClient()

    def resolve(self, reference: Reference) -> Resolution:
        """Ask the server what is there. The bytes and the answer to a GET are the same, so that is how it asks.

        Raises ``InvalidReference``, ``NotFound``, ``NetworkError``, and ``IntegrityError`` for a web page.
        """
        try:
            parse_url(reference.text)
        except ValueError as error:
            raise InvalidReference(f"{mask_url(reference.text)}: {error}") from None
        parts = urlsplit(reference.text)
        folder, _, last = parts.path.rpartition("/")
        urls = [urlunsplit(parts._replace(path=f"{folder}/{name}")) for name in shard_names(last)]
        answers = [self._ask(url) for url in urls]
        names = [file_name(name) for name in shard_names(last)] if len(urls) > 1 else [_name_of(last, answers[0])]
        files = tuple(
            RemoteFile(name, url, length_of(answer)) for name, url, answer in zip(names, urls, answers, strict=True)
        )
        revision = " ".join(filter(None, (_version(answer) for answer in answers)))[:1000]
        return Resolution(files, name_for(names[0]), public_url(reference.text), revision)

    def _ask(self, url: str) -> Response:
        with self._client.get(url, patience=_PATIENCE) as response:
            check_status(response)
            return response


def _version(response: Response) -> str:
    text = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return text if text.isprintable() else ""


def _name_of(segment: str, response: Response) -> str:
    """The name in the URL's path; where that says nothing, the one that the server proposes."""
    name = file_name(segment)
    if Path(name).suffix.lower() in _WEIGHTS:
        return name
    header = Message()
    header["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    proposed = header.get_filename()
    return file_name(proposed.replace("\\", "/").rpartition("/")[2].replace("%", "-")) if proposed else name
