"""Hashes of a file's blocks: they tell where a damaged file is damaged, so that no more than that must be fetched.

File format: ``r-<12 hex>.blocks.json`` beside the revision's folder, UTF-8 JSON. ``schema`` is 1, ``block_size`` in
bytes, ``files`` maps a path inside the revision to ``sha256`` (the whole file's), ``blocks`` (the sha256 of each block
in hex, one after the other; the last block may be shorter) and ``check`` (the sha256 of that text). It lies beside the
manifest since ``list`` reads every manifest, and this grows with the weights: 4 kB a GB.

It only helps: what a file must be is what the manifest says. Without it a file is checked as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm_core.errors import IntegrityError
from myllm_core.models.disk import open_regular, storage_errors, write_atomically
from myllm_core.models.manifest import BLOCKS_SUFFIX, REVISION, ModelFile

SCHEMA = 1
BLOCK_SIZE = 16 * 2**20
_DIGEST = 64
_MAX_BYTES = 64 * 2**20
_TEXT = re.compile(r"(?:[0-9a-f]{64})*")


@dataclass(frozen=True, slots=True)
class Blocks:
    """The sha256 of each block of a file, in hex; ``size`` is that of a block in bytes."""

    size: int
    digests: tuple[str, ...]


class BlockHasher:
    """Hashes a stream of bytes block by block."""

    def __init__(self) -> None:
        self._size = BLOCK_SIZE
        self._done: list[str] = []
        self._hash = hashlib.sha256()
        self._here = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        view = memoryview(data)
        while view:
            part = view[: self._size - self._here]
            self._hash.update(part)
            self._here += len(part)
            view = view[len(part) :]
            if self._here == self._size:
                self._next()

    def _next(self) -> None:
        self._done.append(self._hash.hexdigest())
        self._hash = hashlib.sha256()
        self._here = 0

    def finish(self) -> Blocks:
        """The blocks of all bytes that were taken, the last of them as long as it is."""
        if self._here:
            self._next()
        return Blocks(self._size, tuple(self._done))


def read_blocks(folder: Path, file: ModelFile) -> Blocks | None:
    """What is known of the blocks of a model's file; None when nothing is, or what is there can't be true."""
    revision, _, path = file.path.partition("/")
    size, entries = _read(folder, revision)
    entry = entries.get(path, {})
    text = entry.get("blocks")
    if entry.get("sha256") != file.sha256 or not isinstance(text, str) or entry.get("check") != _check(text):
        return None
    if not _TEXT.fullmatch(text) or len(text) != _DIGEST * -(-file.size // size):
        return None
    return Blocks(size, tuple(text[at : at + _DIGEST] for at in range(0, len(text), _DIGEST)))


def write_blocks(folder: Path, revision: str, files: Mapping[str, tuple[str, Blocks]]) -> None:
    """Keep the sha256 and the blocks of files, by path inside the revision, beside what is known of others.

    Raises ``StorageError``; what was known before is whole then.
    """
    size, entries = _read(folder, revision)
    if size != BLOCK_SIZE:
        entries = {}
    for path, (sha256, blocks) in files.items():
        text = "".join(blocks.digests)
        entries[path] = {"sha256": sha256, "blocks": text, "check": _check(text)}
    body = {"schema": SCHEMA, "block_size": BLOCK_SIZE, "files": entries}
    target = folder / (revision + BLOCKS_SUFFIX)
    with storage_errors(f"write {target}"):
        write_atomically(target, json.dumps(body).encode())


def _check(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path, revision: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The block size and the entries, as far as they have the right types."""
    body: Any = None
    if REVISION.fullmatch(revision):
        path = folder / (revision + BLOCKS_SUFFIX)
        with suppress(OSError, ValueError, RecursionError, IntegrityError), open_regular(path) as source:
            body = json.loads(source.read(_MAX_BYTES))
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        return BLOCK_SIZE, {}
    size, files = body.get("block_size"), body.get("files")
    if type(size) is not int or not 1 <= size <= 2**40 or not isinstance(files, dict):
        return BLOCK_SIZE, {}
    return size, {path: entry for path, entry in files.items() if isinstance(entry, dict)}
