"""Copies of sequences on disk, so that a conversation goes on quickly after a restart.

File format: ``_HEAD`` and ``_SIZES``, then the tokens as 4-byte integers, then llama.cpp's copy of the sequence. The
hash covers all that comes after it; nothing of a file with another hash reaches llama.cpp.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs

from myllm_core import Model
from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular
from myllm_llamacpp.bindings import library, logger
from myllm_llamacpp.context import Ints
from myllm_llamacpp.lora import Adapter, digest_of
from myllm_llamacpp.options import LoadSettings
from myllm_llamacpp.states import State

_HEAD = struct.Struct("<8s32s32s")  # magic, model, hash of what comes after
_SIZES = struct.Struct("<IiQ")  # tokens, first position, bytes of the copy
_MAGIC = b"myllmkv1"
_SUFFIX = ".kv"
_PIECE = 4 * 2**20
_LEFT_FREE = 2**30
_ABANDONED = 3600.0  # seconds after which a half-written file is nobody's


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A file of the cache: what it holds by its head, which nothing has checked yet."""

    path: Path
    tokens: Ints
    first: int


class Disk:
    """The files of one model in a folder that all models share, of ``limit`` bytes together.

    The files that were used longest ago give way. Another process may write and delete here at the same time.
    """

    def __init__(self, folder: Path, model: bytes, limit: int) -> None:
        """Look at what is there. ``model`` is ``model_key``'s."""
        self._folder = folder
        self._model = model
        self.limit = limit
        self._saved = list(self._look()) if limit else []

    def __iter__(self) -> Iterator[Saved]:
        return iter(self._saved)

    def _look(self) -> Iterator[Saved]:
        for path, about in _files(self._folder):
            if path.name.startswith("."):
                if time.time() - about.st_mtime > _ABANDONED:
                    _delete(path)
            elif path.name.startswith(self._prefix):
                try:
                    with open_regular(path) as file:
                        yield self._head(path, file)[0]
                except (OSError, IntegrityError):
                    _delete(path)

    @property
    def _prefix(self) -> str:
        return self._model.hex()[:16] + "-"

    def _head(self, path: Path, file: BinaryIO) -> tuple[Saved, bytes, int]:
        """What a file says that it holds, its hash, and the bytes of its copy. Raises ``IntegrityError``."""
        head = file.read(_HEAD.size + _SIZES.size)
        if len(head) < _HEAD.size + _SIZES.size:
            raise IntegrityError(f"{path.name} is cut short")
        magic, model, digest = _HEAD.unpack_from(head)
        count, first, size = _SIZES.unpack_from(head, _HEAD.size)
        expected = len(head) + 4 * count + size
        if magic != _MAGIC or model != self._model or os.fstat(file.fileno()).st_size != expected:
            raise IntegrityError(f"{path.name} isn't what it should be")
        return Saved(path, np.frombuffer(file.read(4 * count), np.int32), first), digest, size

    def read(self, saved: Saved) -> State | None:
        """The copy that a file holds; None for one that is gone or damaged, which is deleted."""
        try:
            with open_regular(saved.path) as file:
                found, expected, size = self._head(saved.path, file)
                data = np.empty(size, np.uint8)
                digest = _hash(found.tokens, found.first, size)
                for piece in _pieces(data):
                    file.readinto(piece)  # type: ignore[attr-defined]  # a BufferedReader
                    digest.update(piece)
            if digest.digest() != expected:
                raise IntegrityError(f"{saved.path.name} is damaged")
            os.utime(saved.path)
        except (OSError, IntegrityError) as error:
            if not isinstance(error, FileNotFoundError):  # another process may have needed the room
                logger.warning("a saved sequence can't be used (%s); it is read anew", error)
            self.forget(saved)
            return None
        return State(found.tokens, found.first, data, time.time())

    def forget(self, saved: Saved) -> None:
        """Delete a file."""
        _delete(saved.path)
        self._saved = [other for other in self._saved if other is not saved]

    def write(self, state: State, replaces: list[Saved]) -> Iterator[None]:
        """Save a copy piece by piece, so that the caller may do something else after some milliseconds.

        Files that it makes worthless are deleted when it is there. A disk that is full or can't be written ends all
        saving of this model.
        """
        name = self._prefix + hashlib.sha256(state.tokens.tobytes()).hexdigest()[:24] + _SUFFIX
        partial = self._folder / f".{name}.{os.urandom(6).hex()}"
        try:
            _make(self._folder)
            if shutil.disk_usage(self._folder).free < state.data.nbytes + _LEFT_FREE:
                raise OSError("less than a gigabyte would be left free")
            with open(partial, "xb", buffering=0, opener=_private) as file:
                yield from self._write(file, state)
            self._make_room(0)  # the partial file counts already
            os.utime(partial, (state.used, state.used))
            partial.replace(self._folder / name)
        except OSError as error:
            logger.warning("sequences can't be saved to %s: %s", self._folder, error)
            self.limit = 0
            return
        finally:
            _delete(partial)
        for saved in replaces:
            if saved.path.name != name:
                self.forget(saved)
        self._saved.append(Saved(self._folder / name, state.tokens, state.first))

    def _write(self, file: BinaryIO, state: State) -> Iterator[None]:
        size = state.data.nbytes
        digest = _hash(state.tokens, state.first, size)
        file.seek(_HEAD.size)
        file.write(_SIZES.pack(len(state.tokens), state.first, size) + state.tokens.tobytes())
        for piece in _pieces(state.data):
            digest.update(piece)
            file.write(piece)
            yield
        file.seek(0)
        file.write(_HEAD.pack(_MAGIC, self._model, digest.digest()))

    def has_room(self, size: int, used: float) -> bool:
        """Whether so many bytes fit when the files that were used before ``used`` (seconds, wall clock) give way."""
        kept = sum(about.st_size for _, about in _files(self._folder) if about.st_mtime >= used)
        return kept + size <= self.limit

    def _make_room(self, size: int) -> None:
        files = sorted(_files(self._folder), key=lambda file: file[1].st_mtime)
        total = sum(about.st_size for _, about in files) + size
        for path, about in files:
            if total <= self.limit:
                return
            _delete(path)
            total -= about.st_size


def default_folder() -> Path:
    """Where sequences are saved when nobody said where."""
    return platformdirs.user_cache_path("myllm") / "kv"


def model_key(
    model: Model, settings: LoadSettings, adapters: Iterable[Adapter] = (), projectors: Iterable[Path] = ()
) -> bytes | None:
    """A hash of all that decides what llama.cpp keeps of a sequence; None for weights of unknown content."""
    weights = [(file.sha256, path.stat()) for file, path in zip(model.manifest.files, model.paths, strict=True)]
    if not all(sha256 for sha256, _ in weights):
        return None
    streams = 0 if settings.kv_unified else settings.n_parallel
    build = Path(library().api._lib._name).stat()
    parts: list[Any] = [
        [(sha256, about.st_size, about.st_mtime_ns) for sha256, about in weights],
        [settings.keys, settings.type_v, settings.flash_attn, settings.swa_full, streams],
        [version("llama-cpp-python"), build.st_size, build.st_mtime_ns],
        *([adapter.digest, adapter.scale] for adapter in adapters if settings.cache_disk),
        *(["mmproj", digest_of(path), settings.image_max_tokens] for path in projectors if settings.cache_disk),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _hash(tokens: Ints, first: int, size: int) -> Any:
    """The hash of a file's sizes and tokens, to be updated with its copy."""
    digest = hashlib.sha256(_SIZES.pack(len(tokens), first, size))
    digest.update(tokens.tobytes())
    return digest


def _pieces(data: object) -> Iterator[memoryview]:
    view = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make(folder: Path) -> None:
    """Make the folder for us alone: the files hold what people wrote. Raises ``OSError`` when it is another's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
        raise OSError("it belongs to somebody else")


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if _SUFFIX in entry.name:
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    return found


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
