"""Where a file's bytes go: counted, hashed, checked against the free space, reported."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from myllm_core.downloader import RemoteFile
from myllm_core.errors import IntegrityError, StorageError
from myllm_core.models.blocks import BlockHasher, Blocks
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.transfer.partial import Partial, State

_SYNC_EVERY = 5.0
_BLOCK = 2**20
_RESERVE = 2**20  # for the manifest, and for what the file system itself needs


class PullProgress(Protocol):
    """Who is told how a pull goes on. Called from the pulling thread, and often: throttle there."""

    def message(self, text: str) -> None:
        """A few words about what goes on."""

    def file(self, path: str, done: int, total: int | None) -> None:
        """``done`` bytes of ``total`` (None: unknown) of the file at ``path`` are here."""


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ``StorageError`` with both numbers when ``needed`` more bytes don't fit on the disk of ``folder``."""
    with storage_errors(f"find out how much space is free in {folder}"):
        free = shutil.disk_usage(folder).free
    if needed > 0 and needed + _RESERVE > free:
        raise StorageError(
            f"not enough disk space for {what}: {size_text(needed)} more are needed and {size_text(free)} are free in "
            f"{folder}; free some space, or choose another folder with --models-dir",
            needed=needed,
            free=free,
        )


def size_text(count: int) -> str:
    """A number of bytes for people: ``97.9 MB``."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"


class PartSink:
    """Writes one file's bytes into a partial, going on where it ends. Use it as a context manager.

    ``offset`` counts the bytes here, ``best`` the most there ever were, ``resumed`` those from an earlier try.
    """

    def __init__(self, partial: Partial, file: RemoteFile, revision: str, progress: PullProgress) -> None:
        self._partial = partial
        self._file = file
        self._revision = revision
        self._progress = progress
        self._synced_at = time.monotonic()
        self._handle: BinaryIO | None = None
        self._hash, self._blocks = hashlib.sha256(), BlockHasher()
        self.offset = self.best = self.resumed = 0
        self.total = file.size

    def __enter__(self) -> PartSink:
        with storage_errors(f"write {self._partial.data}"):
            self._handle = self._partial.data.open("ab", buffering=0)
            self._resume()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is None:
            return
        try:
            self._sync()
        except OSError:
            with suppress(OSError):  # the disk is full: give some back, so that there is room to note what is here
                self.offset = max(0, self.offset - _BLOCK)
                self._handle.truncate(self.offset)
                self._sync()
        finally:
            self._handle.close()
            self._handle = None

    @property
    def whole(self) -> bool:
        """Whether all bytes are here, as far as their number tells."""
        return self.state.size >= 0 and self.offset == self.state.size

    @property
    def kept(self) -> int:
        """How many of the bytes here a later try can go on from: none, where it couldn't know what they are of."""
        known = self._file.sha256 or self.state.validator or (self.state.sha256 and self._revision)
        return self.offset if known and (self._file.url or self.whole) else 0

    @property
    def state(self) -> State:
        """What is known of the partial's bytes."""
        return self._partial.state

    def write(self, data: bytes) -> None:
        """Append bytes. Raises ``StorageError``, and ``IntegrityError`` for more bytes than the file has."""
        if self.total is not None and self.offset + len(data) > self.total:
            raise IntegrityError(f"{self._file.path}: the source sends more than the {self.total} bytes it should have")
        assert self._handle is not None
        with storage_errors(f"write {self._file.path}"):
            view = memoryview(data)
            while view:
                written = self._handle.write(view)
                self._hash.update(view[:written])
                self._blocks.update(view[:written])
                self.offset += written
                view = view[written:]
            if time.monotonic() - self._synced_at > _SYNC_EVERY:
                self._sync()
        self.best = max(self.best, self.offset)
        self._progress.file(self._file.path, self.offset, self.total)

    def expect(self, size: int) -> None:
        """Say how many bytes the file will have. Raises ``IntegrityError``; ``StorageError`` when they don't fit."""
        if self._file.size is not None and size != self._file.size:
            raise IntegrityError(f"{self._file.path} should have {self._file.size} bytes, but the source has {size}")
        check_space(self._partial.folder, size - self.offset, self._file.path)
        self.total = size
        self._progress.file(self._file.path, self.offset, size)

    def message(self, text: str) -> None:
        """Tell the user in a few words what goes on while no bytes flow."""
        self._progress.message(text)

    def folder(self) -> Path:
        """An empty folder on the models' disk for temporary files."""
        return self._partial.work_folder()

    def restart(self) -> None:
        """Throw away what is here, and begin at 0."""
        assert self._handle is not None
        with storage_errors(f"write {self._partial.data}"):
            self._handle.truncate(0)
            self.offset = self.resumed = 0
            self._hash, self._blocks = hashlib.sha256(), BlockHasher()
            self.total = self._file.size
            self._partial.state = State(self.state.model, self.state.path, self._revision)
            self._partial.save()

    def describe(self, validator: str, size: int | None) -> None:
        """Keep what the source says of the file that is being written, for the next try."""
        self.state.validator, self.state.size = validator, -1 if size is None else size
        with storage_errors(f"write {self._partial.folder}"):
            self._partial.save()

    def finish(self) -> tuple[str, Blocks]:
        """Check the size and the hash, make the file durable, and return its sha256 in hex and those of its blocks.

        Raises ``IntegrityError``; the bytes are thrown away then.
        """
        if self.total is not None and self.offset != self.total:
            raise self._wrong(f"{self._file.path} should have {self.total} bytes, but {self.offset} came")
        digest = self._hash.hexdigest()
        if self._file.sha256 and digest != self._file.sha256:
            raise self._wrong(
                f"{self._file.path} is not the expected file, and was deleted: "
                f"its sha256 is {digest}, and should be {self._file.sha256}",
                sha256=digest,
                expected=self._file.sha256,
            )
        self.state.size, self.state.sha256 = self.offset, digest
        with storage_errors(f"write {self._partial.data}"):
            self._sync()
        return digest, self._blocks.finish()

    def _wrong(self, message: str, **data: str) -> IntegrityError:
        self.restart()
        return IntegrityError(message, **data)

    def _sync(self) -> None:
        assert self._handle is not None
        os.fsync(self._handle.fileno())
        self.state.synced = self.kept
        self._partial.save()
        self._synced_at = time.monotonic()

    def _resume(self) -> None:
        """Take up what an earlier try left, as far as it surely reached the disk and may still be the same file."""
        assert self._handle is not None
        state, size = self.state, self._file.size
        same = state.revision == self._revision and (size is None or state.size in (-1, size))
        checkable = bool(self._file.sha256 or state.validator or (state.sha256 and self._revision))
        here = min(state.synced, self._handle.seek(0, os.SEEK_END))
        if not (same and checkable and here):
            self.restart()
            return
        self._handle.truncate(here)
        self._read_back(here)
        if self.whole and state.sha256 not in ("", self._hash.hexdigest()):
            self.restart()  # the disk changed it

    def _read_back(self, size: int) -> None:
        if size > 256 * _BLOCK:
            self.message(f"checking the {size_text(size)} of {self._file.path} that are already here")
        with open_regular(self._partial.data) as source:
            while block := source.read(_BLOCK):
                self._hash.update(block)
                self._blocks.update(block)
                self.offset += len(block)
        self.resumed = self.best = self.offset
        self.total = self.state.size if self.total is None and self.state.size >= 0 else self.total
