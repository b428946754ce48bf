"""Writing so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from myllm_core.errors import IntegrityError, StorageError

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "your disk quota is used up; free some space and try again",
    errno.EFBIG: "the file is larger than this disk or your limits allow",
    errno.EACCES: "permission denied; check who owns the folder, or choose another with --models-dir",
    errno.EPERM: "permission denied; check who owns the folder, or choose another with --models-dir",
    errno.EROFS: "the disk is read-only; choose another folder with --models-dir",
    errno.ENOTDIR: "a file is where a folder should be; choose another folder with --models-dir",
    errno.EEXIST: "a file is where a folder should be; choose another folder with --models-dir",
    errno.EISDIR: "a folder is where a file should be; remove it and try again",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one with --models-dir",
}


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``StorageError``: "can't ``action``: why, and what to do"."""
    try:
        yield
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0) or error.strerror or str(error)
        raise StorageError(f"can't {action}: {cause}", errno=error.errno) from error


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; anything but a regular file (a pipe would wait for ever) is an ``IntegrityError``.

    Raises ``OSError`` when it can't be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IntegrityError(f"{path.name} is no regular file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in ``folder`` durable, where the system can (Windows has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse to sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file at ``path`` in one step, durably. Raises ``OSError``; the old file is whole then.

    ``mode`` are the new file's permissions, less what the umask takes.
    """
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(partial, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)
