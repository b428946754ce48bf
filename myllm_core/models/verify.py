"""Checking that an installed model is still what was pulled, and finding where it isn't."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from myllm_core.errors import MyllmError
from myllm_core.models.blocks import Blocks, read_blocks
from myllm_core.models.disk import open_regular, storage_errors
from myllm_core.models.inspect import inspect_files
from myllm_core.models.manifest import Model, ModelFile

_CHUNK = 2**20
_SHOWN = 5

VerifyProgress = Callable[[str, int, int], None]
"""Called with a file's path, the bytes of it that were read, and its size; about once a MiB."""

Ranges = tuple[tuple[int, int], ...]
"""Parts of a file: the first byte of each, and the one after its last."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a model; ``path`` is the file's as in the manifest, empty when it is about all files.

    ``ranges`` are the bytes that aren't as they were pulled, in whole blocks; empty when only something behind the
    file's end is too much, None when it isn't known where the damage is.
    """

    path: str
    message: str
    ranges: Ranges | None = None


def verify(model: Model, progress: VerifyProgress) -> list[Problem]:
    """Hash all files again and look into them again; an empty list means that all is well."""
    found = (_check(model.folder, file, progress) for file in model.manifest.files)
    problems = [problem for problem in found if problem]
    if not problems and model.manifest.files:
        names = [file.path for file in model.manifest.files]
        try:
            inspect_files(model.folder, names, format=model.format)
        except MyllmError as error:
            problems.append(Problem("", error.message))
    return problems


def _check(folder: Path, file: ModelFile, progress: VerifyProgress) -> Problem | None:
    path = folder / file.path
    try:
        with storage_errors(f"read {path}"), open_regular(path) as source:
            size = source.seek(0, 2)
            source.seek(0)
            message = _difference(file, size, source, progress)
    except MyllmError as error:
        if not path.exists():
            return Problem(file.path, f"{file.path} is missing")
        message = error.message
    if not message:
        return None
    ranges = _damaged(folder, file, progress)
    return Problem(file.path, message + _shown(ranges), ranges)


def _difference(file: ModelFile, size: int, source: BinaryIO, progress: VerifyProgress) -> str:
    if size != file.size:
        return f"{file.path} has {size} bytes, and had {file.size} when pulled"
    digest = hashlib.sha256()
    done = 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        progress(file.path, done, file.size)
    found = digest.hexdigest()
    return "" if found == file.sha256 else f"{file.path} has changed: its sha256 is {found}, and was {file.sha256}"


def _damaged(folder: Path, file: ModelFile, progress: VerifyProgress) -> Ranges | None:
    """The ranges of the blocks that aren't what they were; None when no blocks are known, or all are as they were."""
    blocks = read_blocks(folder, file)
    if blocks is None:
        return None
    path, ranges = folder / file.path, list[tuple[int, int]]()
    try:
        with open_regular(path) as source:
            longer = source.seek(0, 2) > file.size
            for start, end in _wrong(source, file, blocks, progress):
                if ranges and ranges[-1][1] == start:
                    start = ranges.pop()[0]
                ranges.append((start, end))
    except (OSError, MyllmError):
        return None
    return tuple(ranges) if ranges or longer else None


def _wrong(source: BinaryIO, file: ModelFile, blocks: Blocks, progress: VerifyProgress) -> Iterator[tuple[int, int]]:
    for number, expected in enumerate(blocks.digests):
        start = number * blocks.size
        end = min(start + blocks.size, file.size)
        if _digest(source, start, end) != expected:
            yield start, end
        progress(file.path, end, file.size)


def _digest(source: BinaryIO, start: int, end: int) -> str:
    """The sha256 of some bytes; empty when the disk can't give them."""
    digest = hashlib.sha256()
    try:
        source.seek(start)
        while start < end and (chunk := source.read(min(_CHUNK, end - start))):
            digest.update(chunk)
            start += len(chunk)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return ""
    return digest.hexdigest()


def _shown(ranges: Ranges | None) -> str:
    if not ranges:
        return ""
    parts = [f"{start}-{end - 1}" for start, end in ranges[:_SHOWN]]
    more = f" and {len(ranges) - _SHOWN} more ranges" if len(ranges) > _SHOWN else ""
    return f"; damaged: bytes {', '.join(parts)}{more}"
